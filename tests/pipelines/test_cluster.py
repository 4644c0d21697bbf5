"""What no Ray could give is refused at once, where it would otherwise be waited for without a word."""

import pytest

from pipelines import cluster
from pipelines.errors import Refused

pytestmark = pytest.mark.ray


def test_a_gpu_where_none_is(ray_session: object, monkeypatch: pytest.MonkeyPatch) -> None:
    if cluster.connect().cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(Refused) as refusal:
        cluster.need(gpus=2, what="train")
    assert str(refusal.value) == (
        "train asks for 2 GPUs and this Ray has 0; set train.gpus_per_worker=0 to use CPUs, "
        "or GENMODELS_AUTOSCALING=1 where the cluster starts GPU nodes on demand"
    )
    monkeypatch.setenv("GENMODELS_AUTOSCALING", "1")
    cluster.need(gpus=2, what="train")


def test_more_processors_than_there_are(ray_session: object) -> None:
    with pytest.raises(Refused, match=r"^train asks for 1e\+06 CPUs and this Ray has \d+; lower it, or use a larger cluster$"):
        cluster.need(cpus=1e6, what="train")
    cluster.need(cpus=1, what="train")
