"""Few labels: which of a training set's labels a model is shown, where a recipe says train.labels."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import Refused


def shares(count: int, classes: int) -> NDArray[np.int64]:
    """(classes,): how many labels of each class are shown, the same number up to one. Raises Refused where a class would have none."""
    if classes == 0:
        raise Refused(f"train.labels {count}: the examples have no classes; leave it out, or say in data.label where labels come from")
    if count < classes:
        raise Refused(f"train.labels {count}: {classes - count} of the {classes} classes would have none; wanted at least {classes}")
    return count // classes + (np.arange(classes) < count % classes)


def shown(label: NDArray[np.int64], count: int, names: Sequence[str]) -> NDArray[np.bool_]:
    """label (n,) in disk order, -1 for none -> (n,) which are shown: of each class the first ones. Raises Refused where a class has too few."""
    wanted = shares(count, len(names))
    having = np.bincount(label[label >= 0], minlength=len(names))
    if (having < wanted).any():
        short = int((having - wanted).argmin())
        most = f"at most {int(having.min()) * len(names)}" if having.min() else "a label of each class"
        raise Refused(
            f"train.labels {count}: class {names[short]!r} has {having[short]} labelled training examples, its share is {wanted[short]}; "
            f"wanted {most}"
        )
    first = np.zeros(len(label), bool)
    for number, share in enumerate(wanted.tolist()):
        first[np.flatnonzero(label == number)[:share]] = True
    return first
