"""Adam (https://arxiv.org/abs/1412.6980), as merges and masks descend by it. Not to be confused with the one of searches, on genes."""

from torch import Tensor, zeros_like

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class Adam:
    """The running means of a gradient and of its square, in the dtype of the numbers that move."""

    def __init__(self, numbers: Tensor) -> None:
        """Begin before the first step of `numbers`."""
        self._first, self._second, self._step = zeros_like(numbers), zeros_like(numbers), 0

    def step(self, gradient: Tensor) -> tuple[Tensor, Tensor, float]:
        """Take in a gradient; return `(mean, size, correction)`: a step of rate r is -r / correction * mean / size, element by element.

        `mean` is the object's own tensor: do not change it.
        """
        self._step += 1
        self._first.lerp_(gradient, 1 - _BETAS[0])
        self._second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        size = (self._second / (1 - _BETAS[1] ** self._step)).sqrt_().add_(_EPSILON)
        return self._first, size, 1 - _BETAS[0] ** self._step
