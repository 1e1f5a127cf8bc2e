"""Rank-one editing (Perfusion, Tewel et al. 2023): a projection gives some concepts new outputs and keeps all others.

For a frozen projection W, concepts with encodings i_j and outputs o_j, and the second moment C of text encodings, the
output for an encoding e is

    h(e) = W (e - P e) + sum_j sigmoid( (s_j(e) / E_j - beta_j) / tau_j ) o_j
    s_j(e) = i_j^T C^-1 e,   E_j = i_j^T C^-1 i_j,   P the C^-1-orthogonal projection onto the i_j

(Algorithm 1 of the paper and, for several concepts, its appendix). Neither s_j / E_j nor P depends on the scale of C.
Throughout, `inputs` are the i_j and `directions` the C^-1 i_j, (concepts, dim) each: given both, C is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def energies(inputs: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Return E_j of each concept, (concepts,)."""
    return (inputs * directions).sum(-1)


def orthonormal_basis(inputs: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vectors u_j that span the i_j with u_j^T C^-1 u_k = [j = k], and the C^-1 u_j, (concepts, dim) each.

    With U^T U = C^-1, they are the U^-1 q_j of the QR decomposition of the U i_j, up to sign. Gram-Schmidt under the
    inner product of C^-1 gives them from the arguments, without C.
    """
    import torch

    basis: list[torch.Tensor] = []
    duals: list[torch.Tensor] = []
    for vector, dual in zip(inputs, directions, strict=True):
        for known, known_dual in zip(basis, duals, strict=True):
            share = known_dual @ vector  # of what is left after earlier subtractions, which is numerically stable
            vector, dual = vector - share * known, dual - share * known_dual
        length = (vector @ dual).sqrt()
        basis.append(vector / length)
        duals.append(dual / length)
    return torch.stack(basis), torch.stack(duals)


def are_distinct(inputs: torch.Tensor, directions: torch.Tensor) -> bool:
    """Return whether the i_j are far enough from linear dependence for float32, under the inner product of C^-1."""
    import torch

    lengths = energies(inputs, directions).sqrt()
    cosines = inputs @ directions.T / (lengths[:, None] * lengths)  # (concepts, concepts)
    return bool(torch.linalg.eigvalsh(cosines.double().cpu())[0] > 1e-5)


@dataclass(frozen=True)
class Edit:
    """The part of the edit that does not depend on the layer or its outputs; all tensors are float32 on one device."""

    basis: torch.Tensor  # u_j, (concepts, dim)
    duals: torch.Tensor  # C^-1 u_j, (concepts, dim)
    probes: torch.Tensor  # C^-1 i_j / E_j, (concepts, dim)
    betas: torch.Tensor  # (concepts,)
    taus: torch.Tensor  # (concepts,)

    @classmethod
    def of(cls, inputs: torch.Tensor, directions: torch.Tensor, betas: torch.Tensor, taus: torch.Tensor) -> Edit:
        """Return the edit for some concepts, each with its gate's beta and tau, (concepts,)."""
        basis, duals = orthonormal_basis(inputs, directions)
        return cls(basis, duals, directions / energies(inputs, directions)[:, None], betas, taus)

    def gates(self, encodings: torch.Tensor) -> torch.Tensor:
        """Return how far each concept's gate is open, (batch, tokens, dim) to (batch, tokens, concepts)."""
        return ((encodings @ self.probes.T - self.betas) / self.taus).sigmoid()

    def apply(
        self,
        encodings: torch.Tensor,
        projected: torch.Tensor,
        projected_basis: torch.Tensor,
        outputs: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Return h(e), (batch, tokens, out).

        `encodings` are e (batch, tokens, dim), `projected` W e (batch, tokens, out), `projected_basis` W u_j
        (concepts, out), `outputs` o_j (out,) each, or (tokens, out) if it differs between positions.
        """
        kept = projected - (encodings @ self.duals.T) @ projected_basis  # (batch, tokens, out)
        gates = self.gates(encodings)
        return kept + sum(gates[..., index, None] * output for index, output in enumerate(outputs))
