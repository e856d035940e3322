"""Several processes train as one does, and end together; torchrun starts them."""

from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import together
from alone import needs_alone
from conftest import TinyNet
from eva_utils import main as engine
from eva_utils.models import create_model
from eva_utils.utils import checkpoint as disk
from eva_utils.utils import processes, verified
from eva_utils.utils.loader import Loader
from eva_utils.utils.transforms import train_transform
from together import by_themselves, by_torchrun, told


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of two processes that nothing disturbs: folder and what was printed."""
    out = tmp_path_factory.mktemp("together") / "run"
    done, _ = by_torchrun(out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_they_agree_with_one_process(undisturbed, tmp_path):
    together.main(tmp_path)
    out, printed = undisturbed
    rows, weights = told(tmp_path)
    for rank in range(2):
        ours, ours_weights = told(out, rank)
        assert [list(row.values()) for row in ours] == [pytest.approx(list(row.values()), rel=1e-5) for row in rows]
        assert ours_weights == pytest.approx(weights, rel=1e-4, abs=1e-5)
    assert len({row["lr"] for row in rows}) > 1  # the plateau has cut
    assert printed.count("EPOCH: 1") == 1 and printed.count("Test set") == 3
    assert "/13 (" in printed
    single, several = (verified.load_verified(run / "best.pt") for run in (tmp_path, out))
    for name, weight in single.items():
        torch.testing.assert_close(several[name], weight, rtol=1e-4, atol=1e-5)


@needs_alone
def test_a_stopped_run_resumes_exactly_on_as_many_and_is_refused_on_others(undisturbed, tmp_path):
    printed, *failed = by_themselves(tmp_path / "run", "fault=stop")
    assert "Stopped in epoch 2" in printed and failed == [None, None]
    with pytest.raises(ValueError, match="cannot resume: processes was 2 and is now 1; make it as it was"):
        together.main(tmp_path / "run")
    printed, *failed = by_themselves(tmp_path / "run")
    assert "Resuming after epoch 1 of 3" in printed and failed == [None, None]
    assert told(tmp_path / "run") == told(undisturbed[0])


def test_one_that_is_killed_ends_all_and_leaves_the_checkpoint(tmp_path):
    done, seconds = by_torchrun(tmp_path / "run", "fault=kill")
    assert done.returncode != 0 and seconds < 60
    assert "SIGKILL" in done.stderr
    assert disk.latest_state(tmp_path / "run", print)["epoch"] == 1


@needs_alone
def test_one_that_fails_ends_the_other_and_leaves_the_checkpoint(tmp_path):
    _, other_failed, failed = by_themselves(tmp_path / "run", "fault=nan")
    assert failed.startswith("FloatingPointError: epoch 2: the loss is NaN or infinite at batch 1") and other_failed
    assert disk.latest_state(tmp_path / "run", print)["epoch"] == 1


def test_loaders_that_cannot_be_divided_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(TypeError, match="2 processes divide the batches of load_data's loaders, not those of a list"):
        processes.shard([])


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_the_parts_of_a_loader_make_up_its_batches(parts):
    images = torch.arange(11, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous()
    loader = Loader(images, torch.arange(11), train_transform("none", (0,) * 3, (1,) * 3), batch_size=4, shuffle=True)
    shards = [loader.shard(part, parts) for part in range(parts)]
    for epoch in (1, 2):
        for each in (loader, *shards):
            each.set_epoch(epoch)
        for (whole, labels), *pieces in zip(loader, *shards, strict=True):
            rebuilt, targets = torch.empty_like(whole), torch.empty_like(labels)
            for part, (images, numbers) in enumerate(pieces):
                rebuilt[part::parts], targets[part::parts] = images[: len(numbers)], numbers
                assert len(images) == max(1, len(numbers))
            assert torch.equal(rebuilt, whole) and torch.equal(targets, labels)


def test_a_loader_that_is_not_divided_is_summed_in_each_process_alone(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    loader = [(torch.randn(3, 3, 8, 8), torch.arange(3))]
    assert engine.test(TinyNet(), loader, device="cpu").samples == 3  # and no other process is waited for


@pytest.mark.parametrize(
    ("norm", "criterion", "place", "message"),
    [
        ("layer", nn.CrossEntropyLoss(weight=torch.ones(4)), "cpu", "a loss that weights the classes"),
        ("layer", partial(F.cross_entropy, weight=torch.ones(4)), "cpu", "a loss that weights the classes"),
        ("layer", nn.CrossEntropyLoss(ignore_index=2), "cpu", "a loss that weights the classes, or ignores one"),
        ("layer", nn.AdaptiveLogSoftmaxWithLoss(4, 4, [2]), "cpu", "a loss with parameters would be trained by each"),
        ("layer", None, "meta", "this process of 2 trains on cpu, not on meta; give device='cpu'"),
        ("layer", None, "mps", "this process of 2 trains on cpu, not on mps; give device='cpu'"),
        ("batch", None, "cpu", "torch synchronises batch normalization on CUDA only"),
    ],
)
def test_what_would_not_be_as_in_one_process_is_refused(norm, criterion, place, message, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "device", lambda: torch.device("cpu"))
    with pytest.raises(ValueError, match=message):
        processes.check_together(create_model("small_resnet", norm=norm), criterion, torch.device(place))


def test_all_test_with_the_buffers_of_the_first_process(tiny_net, monkeypatch):
    events, share = [], processes.share_buffers
    tiny_net.register_forward_pre_hook(lambda module, _: events.append("train" if module.training else "test"))

    def share_as_one_of_two(*models):
        events.append("share")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processes, "count", lambda: 2)
            patch.setattr(processes.dist, "broadcast", lambda buffer, source: buffer.fill_(3 + source))
            share(*models)

    monkeypatch.setattr(processes, "share_buffers", share_as_one_of_two)
    batches = [(torch.randn(3, 3, 8, 8), torch.arange(3))] * 2
    engine.fit(tiny_net, batches, batches[:1], epochs=1, ema=0.9, log=None, device="cpu", precision="float32")
    assert events == ["test", "train", "train", "share", "test"]
    assert tiny_net.norm.running_mean.tolist() == [3] * 6 and tiny_net.norm.num_batches_tracked == 3


def test_a_buffer_with_gaps_is_shared_and_its_neighbours_are_left(monkeypatch):
    model, base = nn.Module(), torch.zeros(4, 3)
    model.register_buffer("column", base[:, 1])
    monkeypatch.setattr(processes, "count", lambda: 2)

    def broadcast(buffer, source):
        assert buffer.is_contiguous()
        buffer.copy_(torch.arange(4.0) + source + 1)

    monkeypatch.setattr(processes.dist, "broadcast", broadcast)
    processes.share_buffers(None, model)
    assert base.tolist() == [[0, 1, 0], [0, 2, 0], [0, 3, 0], [0, 4, 0]]


def test_a_group_of_gpus_waits_an_hour_for_a_download(monkeypatch):
    calls = []
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: calls.append(("set_device", index)))
    monkeypatch.setattr(processes.dist, "init_process_group", lambda *args, **options: calls.append((*args, options)))
    monkeypatch.setattr(processes.dist, "barrier", lambda: calls.append("barrier"))
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: None)
    with processes.process_group():
        calls.append("work")
    options = {"device_id": torch.device("cuda", 1), "timeout": timedelta(hours=1)}
    assert calls == [("set_device", 1), ("nccl", options), "work", "barrier"]


@pytest.mark.parametrize("place", ["cuda:0", "cpu"])
def test_each_process_has_a_gpu_of_its_own(place, monkeypatch):
    """What is asked for holds for all of them, and each GPU for one."""
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "device", lambda: torch.device("cuda", 1))
    with pytest.raises(ValueError, match=f"this process of 2 trains on cuda:1, not on {place}; leave device out"):
        processes.check_together(create_model("small_resnet", norm="layer"), None, torch.device(place))
    processes.check_together(create_model("small_resnet", norm="layer"), None, torch.device("cuda"))


def test_the_parts_draw_augmentations_of_their_own():
    images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
    loader = Loader(images, torch.zeros(8, dtype=torch.int64), train_transform("eva6_s8", (0,) * 3, (1,) * 3))
    same = loader.shard(0, 2)
    first, second = (loader.shard(part, 2) for part in range(2))
    second.labels, second.images = second.labels.roll(-1), second.images.clone()
    second.images[1::2] = images[::2]  # the images of the first part
    assert torch.equal(next(iter(first))[0], next(iter(same))[0])
    assert not torch.equal(next(iter(first))[0], next(iter(second))[0])


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "3", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = "process 2 finds 2 GPUs; start at most --nproc-per-node=2"
    with pytest.raises(ValueError, match=message), processes.process_group():
        pass


@pytest.mark.parametrize(
    ("rank", "kind", "said"),
    [(0, ValueError, "^no room$"), (1, RuntimeError, "^the first process failed: ValueError: no room$")],
)
def test_what_fails_in_the_first_process_ends_all(rank, kind, said, monkeypatch):
    def broadcast(told, device):
        assert rank or told == [None, "ValueError: no room"]
        told[:] = [None, "ValueError: no room"]

    def work():
        raise ValueError("no room")

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "rank", lambda: rank)
    monkeypatch.setattr(processes, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(processes.dist, "broadcast_object_list", broadcast)
    with pytest.raises(kind, match=said):
        processes.first_does(work)


def test_one_process_is_no_group():
    model = create_model("small_resnet")
    with processes.process_group(), processes.parallel(model) as trained:
        assert trained is model and processes.count() == 1 and processes.rank() == 0
        assert processes.gather("x") == ["x"] and processes.first_does(lambda: 3) == 3


def test_a_part_without_a_label_holds_its_image_augmented_as_the_whole_batch_is():
    images = torch.randint(256, (9, 3, 16, 16), dtype=torch.uint8)
    transform = train_transform("eva6_s8", (0,) * 3, (1,) * 3)
    shard = Loader(images, torch.arange(9), transform, batch_size=4).shard(1, 2)
    *_, (last, labels) = shard
    generator = torch.Generator().manual_seed(shard._seeds()[1])
    *_, expected = (transform(images[positions], generator) for positions in ([1, 3], [5, 7], [8]))
    assert torch.equal(last, expected) and len(labels) == 0
    assert not torch.equal(last, train_transform("none", (0,) * 3, (1,) * 3)(images[8:]))
