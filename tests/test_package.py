"""The names that the package itself has."""

import sys

import pytest

import eva_utils as eva


def test_every_name_is_where_the_package_looks_for_it():
    for name in eva._HOME:
        assert getattr(eva, name).__name__ == name
    assert set(eva.__all__) == {"__version__", *eva._HOME} > set(eva._ELSEWHERE.values())
    assert dir(eva) == sorted([*eva.__all__, "main", "models", "utils"])
    for name in ("main", "models", "utils"):
        assert eva.__getattr__(name) is sys.modules[f"eva_utils.{name}"]  # also before anything has imported it


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet_18", "; did you mean 'resnet18'?"),
        ("Fit", "; did you mean 'fit'?"),
        ("plot_loss", "; did you mean 'plot_history'?"),
        ("qqq", ""),
        ("score", ""),
    ],
)
def test_a_name_it_does_not_have_is_answered_with_the_nearest(name, hint):
    with pytest.raises(AttributeError) as caught:
        getattr(eva, name)
    assert str(caught.value) == f"module 'eva_utils' has no attribute {name!r}{hint}"
    assert not hasattr(eva, name)
