"""What really computes: read from the model when it was tried, shown in reports, and told by packages of kernels."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from models import Integrator
from observed_models import wrapped
from torch import Tensor

import statecheck as sc
from statecheck import doctor


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class TestBackend:
    @pytest.mark.parametrize(
        ("told", "shown"),
        [
            ("cpu (AVX2)", "cpu (AVX2)"),
            ("a\x1b[31m\nb", "a [31m b"),
            (7, "torch"),
            ("", "torch"),
            (None, "torch"),
            ("x" * 200, "x" * 77 + "..."),
        ],
    )
    def test_the_modules_own_word(self, told: Any, shown: str) -> None:
        module = Integrator()
        module.backend = told
        assert sc.wrap(module, width=3).facts.backend == shown

    def test_it_is_what_ran_not_what_was_hoped_for(self) -> None:
        class Chooses(Integrator):
            def __init__(self) -> None:
                super().__init__()
                self.ran: str | None = None

            @property
            def backend(self) -> str | None:
                return self.ran

            def forward(self, x: Tensor) -> Tensor:
                self.ran = "compiled"
                return super().forward(x)

        assert sc.wrap(Chooses(), width=3).facts.backend == "compiled"

    def test_a_property_that_raises_is_no_word(self) -> None:
        class Raises(Integrator):
            @property
            def backend(self) -> str:
                raise RuntimeError("not loaded")

        assert sc.wrap(Raises(), width=3).facts.backend == "torch"

    def test_reports_name_it(self) -> None:
        from statecheck.report.markdown import gate_markdown, statefulness_markdown

        report = sc.check_model(wrapped(training_length=16), suite="smoke", only=["S3"])
        assert report.to_json()["model"]["facts"]["backend"] == "brute force"
        for text in (gate_markdown(report), statefulness_markdown(report)):
            assert text.count("| Backend | brute force, float64 on cpu |") == 1


@pytest.fixture
def plugin() -> Iterator[types.ModuleType]:
    module = types.ModuleType("made_up_kernels")
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


class TestDoctor:
    def told(self, *functions: str) -> list[tuple[str, str, str]]:
        points = [EntryPoint(f, f"made_up_kernels:{f}", "statecheck.backends") for f in functions]
        return doctor.backends(points)

    def test_rows_of_a_plugin(self, plugin: Any) -> None:
        plugin.kernels = lambda: [("cpu", True, "AVX2, 2 threads"), ("triton", False, "no\x1b GPU")]
        assert self.told("kernels") == [
            ("kernels: cpu", "ok", "AVX2, 2 threads"),
            ("kernels: triton", "no", "no GPU"),
        ]

    def test_a_plugin_that_fails_is_a_row(self, plugin: Any) -> None:
        def leaves() -> None:
            raise SystemExit(3)

        plugin.divides, plugin.leaves, plugin.odd = lambda: 1 / 0, leaves, lambda: [("cpu", "yes")]
        plugin.empty = list
        rows = self.told("divides", "missing", "leaves", "odd", "empty")
        assert [row[1] for row in rows] == ["no"] * 5
        assert "ZeroDivisionError: division by zero" in rows[0][2]
        assert "AttributeError" in rows[1][2]
        assert "SystemExit: 3" in rows[2][2]
        assert "expected rows (what: str, usable: bool, text: str), found ('cpu', 'yes')" in rows[3][2]
        assert rows[4][2] == "tells of no backend"

    def test_a_package_that_is_not_there_is_a_row(self) -> None:
        point = EntryPoint("kernels", "no_such_package:describe", "statecheck.backends")
        (row,) = doctor.backends([point])
        assert row[:2] == ("kernels", "no")
        assert "ModuleNotFoundError" in row[2]
