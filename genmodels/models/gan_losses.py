"""What the two players of a GAN descend, a number a row: four games, and two penalties of the critic's gradient.

Every game is told by the critic's value alone: a logit log D / (1 - D) in the first two, a margin in hinge's, a potential in Wasserstein's.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Literal["minimax", "non-saturating", "hinge", "wgan-gp"]


def critic_loss(loss: Loss, at_real: Tensor, at_fake: Tensor) -> Tensor:
    """The critic's values of as many real and generated examples, (B,) each -> (B,), in nats where they are logits."""
    if loss == "wgan-gp":
        return at_fake - at_real  # Gulrajani et al., eq. 3, without its penalty
    if loss == "hinge":
        return F.relu(1 - at_real) + F.relu(1 + at_fake)  # Miyato et al., eq. 16
    return F.softplus(-at_real) + F.softplus(at_fake)  # Goodfellow et al., eq. 1: -log D(x) - log(1 - D(G(z)))


def generator_loss(loss: Loss, at_fake: Tensor) -> Tensor:
    """The critic's values of generated examples, (B,) -> (B,)."""
    if loss == "minimax":
        return -F.softplus(at_fake)  # Goodfellow et al., eq. 1: log(1 - D(G(z)))
    if loss == "non-saturating":
        return F.softplus(-at_fake)  # Goodfellow et al., section 3: -log D(G(z))
    return -at_fake


def squared_gradients(critic: nn.Module, x: Tensor, y: Tensor | None) -> Tensor:
    """(B,) squared norm, over all dimensions of a row, of the critic's gradient at x; in float32 whatever the precision of the rest.

    Half of it times gamma is R1, the zero-centred penalty at the data (Mescheder et al., eq. 9).
    """
    with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
        x = x.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(x, y).sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1)


def unit_norm_penalty(critic: nn.Module, x: Tensor, y: Tensor | None) -> Tensor:
    """(B,): how far the gradient's norm at x is from one, squared (Gulrajani et al., eq. 3)."""
    return ((squared_gradients(critic, x, y) + 1e-12).sqrt() - 1).square()
