"""Which forms of the kernels really ran, so that a model that does not use them is found out."""

from collections import Counter

from statecheck_kernels import forms
from statecheck_kernels.contract import Form

used: Counter[str] = Counter()


def count_forms() -> None:
    """From now on, counts in `used` the form that each call of a kernel takes."""
    load = forms.load

    def counted(name: str) -> Form:
        used[name] += 1
        return load(name)

    forms.load = counted
