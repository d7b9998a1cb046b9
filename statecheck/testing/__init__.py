"""For tests: checking a model in-process, oracle models with known answers, and culprits that checks must catch."""

from statecheck.faults import FAULTS
from statecheck.testing.calibration import calibrate_cell
from statecheck.testing.checking import check_model, parametrize_with_checks
from statecheck.testing.culprits import plant

__all__ = ["FAULTS", "calibrate_cell", "check_model", "parametrize_with_checks", "plant"]
