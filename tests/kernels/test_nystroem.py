"""The Nystroem feature map against the kernel matrices that it approximates."""

import numpy as np
import pytest
from kernel_oracles import KERNELS, oracle_gram, sample

from jaxspec.kernels import lift, whitening


@pytest.mark.parametrize("make", KERNELS)
def test_lifted_landmarks_have_the_kernel_as_inner_product(make):
    kernel, landmarks = make(bandwidth=2.0), sample(0, 30)
    lifted = lift(kernel, landmarks, whitening(kernel, landmarks), landmarks)
    assert lifted.shape == (30, 30)
    np.testing.assert_allclose(
        lifted @ lifted.T, oracle_gram(kernel, landmarks, landmarks), atol=2e-3
    )


@pytest.mark.parametrize("make", KERNELS)
def test_lifted_features_have_the_nystroem_approximation_as_inner_product(make):
    kernel, landmarks, x = make(bandwidth=2.0), sample(0, 30), sample(1, 12)
    lifted = lift(kernel, landmarks, whitening(kernel, landmarks), x)
    cross = oracle_gram(kernel, x, landmarks)
    want = cross @ np.linalg.solve(oracle_gram(kernel, landmarks, landmarks), cross.T)
    np.testing.assert_allclose(lifted @ lifted.T, want, atol=2e-3)


def test_repeated_landmarks_leave_the_map_finite():
    kernel, landmarks = KERNELS[0](bandwidth=2.0), np.repeat(sample(0, 4), 5, axis=0)
    assert np.isfinite(whitening(kernel, landmarks)).all()
