"""Optimal coupling of noise and examples within a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def optimal(x0: Tensor, eps: Tensor) -> Tensor:
    """Reorder the rows of eps so that sum_i |x0_i - eps_i|^2 is minimal; x0, eps: (B, *S) -> (B, *S).

    Each row of eps is used once, so over many batches the noise keeps its distribution. Solved exactly on the host,
    in O(B^3) operations.
    Source: Tong et al. 2024 (arXiv:2302.00482), sec. 3.2; Pooladian et al. 2023 (arXiv:2304.14772), sec. 3.
    """
    from scipy.optimize import linear_sum_assignment

    with torch.no_grad():
        # |a - b|^2 = |a|^2 + |b|^2 - 2 a b, and the squares do not depend on the assignment.
        cost = -(x0.double().flatten(1) @ eps.double().flatten(1).T)
        _, chosen = linear_sum_assignment(cost.cpu().numpy())
    return eps[torch.as_tensor(chosen, device=eps.device)]
