"""Whether a graph can be trained on a dataset: checked before anything is reserved."""

from modelkeep_platform.datasets.spec import DatasetSpec
from modelkeep_platform.models.graph.format import Graph
from modelkeep_platform.training.spec import InvalidJobError


def check_shapes(graph: Graph, dataset: DatasetSpec, loss: str) -> None:
    """Check inputs, outputs and loss against the dataset.

    Raises:
        InvalidJobError: they do not fit; the message says what would.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise InvalidJobError("a trained model has one input and one output")
    if not graph.parameters():
        raise InvalidJobError("the model has no parameters to train")
    taken, given = graph.inputs[0], graph.outputs[0]
    wanted = (-1, *dataset.feature_shape())
    if taken.dtype != "float32" or taken.shape != wanted:
        raise InvalidJobError(
            f"the model's input is float32 {list(wanted)} for this dataset, not {taken.dtype} {list(taken.shape)}"
        )
    classes = dataset.class_count()
    if loss == "cross_entropy":
        if classes is None:
            raise InvalidJobError("`cross_entropy` needs a target of categories")
        expected: tuple[int, ...] = (-1, classes)
    elif classes is not None:
        raise InvalidJobError("`mse` needs a target of numbers, or none to learn the input itself")
    else:
        expected = wanted if dataset.target() is None else (-1, 1)
    if given.shape != expected:
        raise InvalidJobError(
            f"the model's output is {list(expected)} for this dataset and loss, not {list(given.shape)}"
        )
