"""An attack never changes the model it attacks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

Classifier = Callable[[Tensor], Tensor]


@contextmanager
def untouched(classifier: Classifier) -> Iterator[None]:
    """Put the classifier in eval mode with no parameter requiring a gradient, and restore both on leaving.

    Eval mode keeps batch-norm statistics as they are and makes the attacked function deterministic; parameters without
    gradients mean that no graph is kept for them. Each module's own mode and each parameter's own flag come back, also
    when the body raises. A classifier that is a plain function passes through.
    """
    if not isinstance(classifier, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in classifier.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in classifier.parameters()]
    try:
        classifier.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
