import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslens.embeddings import centroid_drift, displacements, geometry_drift
from compresslens.errors import UserError


def labelled_map(seed: int = 0, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    return np.array([[0, 0], [10, 0], [0, 10]])[labels] + generator.normal(size=(n, 2)), labels


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-50, 50))
def test_place_and_size_of_a_map_do_not_matter(seed: int, scale: float, shift: float) -> None:
    positions, labels = labelled_map(seed)
    assert displacements(scale * positions + shift, positions) == pytest.approx(np.zeros(60), abs=1e-9)
    assert list(centroid_drift(scale * positions + shift, positions, labels).values()) == pytest.approx(
        [0] * 3, abs=1e-9
    )


def test_classes_that_change_places_drift() -> None:
    positions, labels = labelled_map()
    swapped = positions.copy()
    swapped[labels == 1], swapped[labels == 2] = positions[labels == 2], positions[labels == 1]
    drift = centroid_drift(swapped, positions, labels)
    size = np.sqrt(((positions - positions.mean(0)) ** 2).sum(1).mean())
    distance = np.linalg.norm(positions[labels == 1].mean(0) - positions[labels == 2].mean(0)) / size
    assert drift == pytest.approx({0: 0, 1: distance, 2: distance}, abs=1e-9)


def test_unrelated_maps_are_about_one_radius_apart() -> None:
    generator = np.random.default_rng(0)
    assert 1.1 < displacements(*generator.normal(size=(2, 4000, 2))).mean() < 1.4


def test_geometry_of_networks_of_different_width() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(80) % 4
    narrow = generator.normal(size=(4, 4))[labels] + generator.normal(size=(80, 4))
    rotation = np.linalg.qr(generator.normal(size=(9, 9)))[0][:4]
    assert geometry_drift(3 * narrow @ rotation + 1, narrow, labels) == pytest.approx(
        dict.fromkeys(range(4), 0), abs=1e-9
    )
    # Corners of a square, then with two of them exchanged: 0 and 1 were neighbours, now 0 faces 1.
    square = np.array([[1.0, 1], [1, -1], [-1, -1], [-1, 1]])
    exchanged = square[[0, 2, 1, 3]]
    drift = geometry_drift(exchanged, square, np.arange(4))
    assert drift == pytest.approx({0: 2 / 3, 1: 2 / 3, 2: 2 / 3, 3: 2 / 3}, abs=1e-12)


def test_what_has_no_direction_or_size_is_nan() -> None:
    positions, labels = labelled_map()
    assert np.isnan(displacements(np.zeros((60, 2)), positions)).all()
    assert np.isnan(list(centroid_drift(np.zeros((60, 2)), positions, labels).values())).all()
    assert np.isnan(geometry_drift(positions, positions, np.zeros(60, int))[0])
    assert np.isnan(list(geometry_drift(np.full((60, 5), 2.0), positions, labels).values())).all()


def test_drift_refuses_what_does_not_fit() -> None:
    positions, labels = labelled_map()
    with pytest.raises(UserError, match=r"shape \(59, 2\)"):
        displacements(positions[:-1], positions)
    with pytest.raises(UserError, match=r"labels have the shape \(59,\)"):
        centroid_drift(positions, positions, labels[:-1])
    with pytest.raises(UserError, match="the reference's are of 59"):
        geometry_drift(positions, positions[:-1], labels)
