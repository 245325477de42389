import numpy as np
import pytest

from reasonrec.training.blending import held_weights, likeliest_weights


def said(*targets_ahead: float) -> dict[str, np.ndarray]:
    """One expert and two candidates, by how far the target is ahead in its words."""
    return {"answers": np.array([[ahead, 0.0] for ahead in targets_ahead])}


TWO = np.array([[0, 1]] * 4)


def test_the_weight_is_the_log_odds_of_being_right() -> None:
    """Right by 1 in three of four: the sigmoid of the weight is 3/4, the weight log 3."""
    found = likeliest_weights(said(1, 1, 1, -1), TWO, ridge=0.0)
    assert found["answers"] == pytest.approx(np.log(3), abs=1e-4)


def test_a_ridge_pulls_towards_nothing() -> None:
    """Then (1/2 - 1/4) of the gradient at 0 is held by 2 * ridge * weight near it."""
    found = likeliest_weights(said(1, 1, 1, -1), TWO, ridge=100.0)
    assert found["answers"] == pytest.approx(0.25 / 200, rel=0.01)


def test_who_is_wrong_counts_for_nothing_unless_it_may_be_turned_round() -> None:
    wrong = said(-1, -1, -1, 1)
    assert likeliest_weights(wrong, TWO, ridge=0.0)["answers"] == 0.0
    turned = likeliest_weights(wrong, TWO, ridge=0.0, may_be_negative=("answers",))
    assert turned["answers"] == pytest.approx(-np.log(3), abs=1e-4)


def test_no_weight_falls_below_its_least() -> None:
    found = likeliest_weights(said(1, 1, 1, -1), TWO, ridge=0.0, least={"answers": 2.0})
    assert found["answers"] == 2.0


def test_padding_is_no_candidate() -> None:
    wide = {"answers": np.pad(said(1, 1, 1, -1)["answers"], ((0, 0), (0, 2)))}
    padded = np.pad(TWO, ((0, 0), (0, 2)), constant_values=-1)
    found = likeliest_weights(wide, padded, ridge=0.0)
    assert found["answers"] == pytest.approx(np.log(3), abs=1e-4)


def test_what_is_held_keeps_the_weight_that_it_earns_without_its_rivals() -> None:
    """Chains and first stage say the same: together they share log 3, held chains keep all."""
    one = said(1, 1, 1, -1)["answers"]
    both, asked = {"steps": one, "first": one}, {"ridge": 1e-6, "rivals": ("first", "ease")}
    shared = held_weights(both, TWO, held=(), **asked)
    assert shared == pytest.approx(dict.fromkeys(both, np.log(3) / 2), abs=1e-2)
    held = held_weights(both, TWO, held=("steps", "count"), **asked)
    assert held == pytest.approx({"steps": np.log(3), "first": 0.0}, abs=1e-2)
