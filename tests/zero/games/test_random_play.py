"""Uniformly random play."""

import numpy as np

from zero.games.random_play import random_legal_actions


def test_every_legal_action_is_equally_likely():
    """Equally spaced uniforms hit each legal action equally often, and no other."""
    mask = np.zeros(360, np.bool_)
    mask[[0, 7, 120, 359]] = True
    uniforms = (np.arange(400) + 0.5) / 400
    actions = random_legal_actions(np.tile(mask, (400, 1)), uniforms)
    values, counts = np.unique(actions, return_counts=True)
    assert values.tolist() == [0, 7, 120, 359]
    assert counts.tolist() == [100] * 4


def test_where_nothing_is_legal_there_is_no_action():
    """-1 stands for none; the ends of the range of uniforms are safe."""
    mask = np.array([[False, False], [True, True], [True, True]])
    assert random_legal_actions(mask, np.array([0.5, 0.0, np.nextafter(1.0, 0.0)])).tolist() == [-1, 0, 1]
