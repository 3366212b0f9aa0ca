"""Random rotations for tests of point clouds."""

import torch


def random_rotation(dtype=torch.float32):
    """A uniformly distributed rotation matrix: QR of normal numbers, signs and determinant fixed."""
    q, r = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    q = q * r.diagonal().sign()
    q[:, 0] *= torch.linalg.det(q).sign()
    return q.to(dtype)


def rotate_vectors(x, rotation):
    """Turn vectors ``(..., S, C)``."""
    return rotation @ x
