"""The mirror of a run holds its files, fails without harm, and alone is enough to resume from."""

import shutil

import pytest
import torch

from eva_utils import main as engine
from eva_utils.utils import mirror as mirrors
from eva_utils.utils.lock import locked
from reporting import contents
from runs import StopAfter, assert_equal_weights, make_run, without_time


def test_each_finished_epoch_is_copied_and_old_ones_go(tmp_path):
    run, mirror = tmp_path / "run", tmp_path / "drive" / "run"
    seen = []

    def watch(line):
        if line.startswith("EPOCH"):
            seen.append(sorted(contents(mirror)) if mirror.exists() else [])

    make_run("plateau", epochs=3, checkpoint=run, mirror=mirror, log=watch)
    assert seen[0] == [] and seen[2] == ["best.pt", "epoch-0001.pt", "epoch-0002.pt", "history.json", "last.pt"]
    assert contents(mirror) == contents(run)
    assert "epoch-0001.pt" not in contents(mirror)


def test_a_lost_run_resumes_exactly_from_its_mirror(tmp_path):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    model, history = make_run("plateau")
    make_run("plateau", checkpoint=run, mirror=mirror, log=StopAfter(2))
    shutil.rmtree(run)
    lines = []
    resumed_model, resumed = make_run("plateau", checkpoint=run, mirror=mirror, resume=True, log=lines.append)
    assert lines[0] == f"Copied the run in {mirror} to {run}"
    assert without_time(resumed) == without_time(history)
    assert_equal_weights(resumed_model.state_dict(), model.state_dict())
    assert contents(mirror) == contents(run)


def test_the_note_of_the_command_is_mirrored_and_brought_back_in_place_of_a_newer_one(tmp_path):
    """The command line notes a new run before it finds out that the mirror has one to resume."""
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    run.mkdir()
    (run / "command.json").write_bytes(b"the first command")
    make_run("plateau", checkpoint=run, mirror=mirror, log=StopAfter(1))
    assert contents(mirror) == contents(run)
    assert (mirror / "command.json").read_bytes() == b"the first command"
    shutil.rmtree(run)
    run.mkdir()
    (run / "command.json").write_bytes(b"the second command")
    make_run("plateau", epochs=2, checkpoint=run, mirror=mirror, resume=True)
    assert (run / "command.json").read_bytes() == b"the first command"
    assert contents(mirror) == contents(run)


@pytest.mark.parametrize("which", ["checkpoint", "mirror"])
def test_a_google_drive_that_is_not_mounted_is_refused(which, tmp_path, monkeypatch):
    monkeypatch.setattr(mirrors, "_COLAB", tmp_path)
    drive = tmp_path / "drive"
    folders = {"checkpoint": tmp_path / "run", "mirror": tmp_path / "mirror", which: drive / "MyDrive" / "runs" / "s8"}
    with pytest.raises(ValueError, match=r"which is not mounted, .* run from google.colab import drive; drive\.mount"):
        make_run("plateau", epochs=1, **folders)
    assert list(tmp_path.iterdir()) == []
    for other in ("MyDrive", "My Drive/run"):
        with pytest.raises(ValueError, match="is on Google Drive, which is not mounted"):
            mirrors.check_mounted(drive / other)
    mirrors.check_mounted(tmp_path / "MyDrive" / "run")
    monkeypatch.setattr(mirrors.os.path, "ismount", lambda path: path == drive)
    make_run("plateau", epochs=1, **folders)
    assert (folders[which] / "best.pt").exists()


def test_a_mirror_of_another_model_leaves_a_new_folder_empty(tmp_path):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    make_run("plateau", epochs=1, checkpoint=run, mirror=mirror)
    before = contents(mirror)
    for other in ("step", "cosine"):
        message = r"cannot resume: scheduler class .* \(in the mirror .*mirror, so name another one as well\)"
        with pytest.raises(ValueError, match=message):
            make_run(other, checkpoint=tmp_path / "new", mirror=mirror, resume="auto")
    assert contents(tmp_path / "new") == {} and contents(mirror) == before
    make_run("step", epochs=1, checkpoint=tmp_path / "new", mirror=tmp_path / "second", resume="auto")


@pytest.mark.parametrize("error", [ValueError("the rate is 0"), TypeError("no loss"), KeyboardInterrupt()])
def test_an_error_of_something_else_takes_the_copies_away_and_blames_no_mirror(error, tmp_path, monkeypatch):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    make_run("plateau", epochs=1, checkpoint=tmp_path / "old", mirror=mirror)
    before = contents(mirror)

    def fail(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
        patch.setattr(engine, "check_rate", fail)
        make_run("plateau", epochs=2, checkpoint=run, mirror=mirror, resume=True)
    assert caught.value is error and contents(run) == {} and contents(mirror) == before
    assert len(make_run("plateau", epochs=2, checkpoint=run, mirror=mirror, resume=True)[1]) == 2


def test_a_mirror_that_disappears_halfway_is_warned_of_and_caught_up(tmp_path):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    lines = []

    def unplug(line):
        lines.append(line)
        if line == "EPOCH: 2":
            shutil.rmtree(mirror)
            mirror.touch()  # nothing can be written below a file
        if line == "EPOCH: 4":
            mirror.unlink()

    model, history = make_run("plateau", checkpoint=run, mirror=mirror, log=unplug)
    warnings = [line for line in lines if line.startswith("Warning")]
    assert len(warnings) == 2 and str(mirror) in warnings[0] and "the run goes on" in warnings[0]
    undisturbed, expected = make_run("plateau")
    assert without_time(history) == without_time(expected)
    assert_equal_weights(model.state_dict(), undisturbed.state_dict())
    assert contents(mirror) == contents(run)


def test_of_two_sessions_that_go_on_with_one_run_the_second_only_warns(tmp_path):
    """As a new machine that restored the run while the old one still trains; both have the first epoch."""
    run, other, mirror, lines = tmp_path / "run", tmp_path / "other", tmp_path / "mirror", []
    make_run("plateau", epochs=1, checkpoint=run, mirror=mirror)

    def meddle(line):
        lines.append(line)
        if line == "EPOCH: 2":
            make_run("plateau", epochs=4, checkpoint=run, mirror=mirror, resume=True)
            (mirror / ".last.pt.1.tmp").touch()  # as the other session's that is being written

    make_run("plateau", epochs=3, checkpoint=other, mirror=mirror, resume=True, log=meddle)
    warnings = [line for line in lines if line.startswith("Warning")]
    assert len(warnings) == 2 and "another session writes to this mirror: it holds 4 epochs, and the" in warnings[0]
    assert contents(mirror) == {**contents(run), ".last.pt.1.tmp": b""}
    assert "epoch-0003.pt" in contents(other)


def test_a_drive_that_is_unmounted_halfway_is_not_made_anew_on_the_disk(tmp_path, monkeypatch):
    drive, run, lines = tmp_path / "drive", tmp_path / "run", []
    mirror, mounted = drive / "MyDrive" / "runs" / "s8", [drive]
    monkeypatch.setattr(mirrors, "_COLAB", tmp_path)
    monkeypatch.setattr(mirrors.os.path, "ismount", lambda path: path in mounted)

    def unmount(line):
        lines.append(line)
        if line == "EPOCH: 2":
            mounted.clear()
            shutil.rmtree(drive / "MyDrive")

    make_run("plateau", epochs=2, checkpoint=run, mirror=mirror, log=unmount)
    assert list(drive.iterdir()) == []
    (warning,) = [line for line in lines if line.startswith("Warning")]
    assert "is not up to date" in warning and "is on Google Drive, which is not mounted" in warning


def test_old_epochs_are_emptied_in_the_mirror_before_they_go(tmp_path, monkeypatch):
    """Google Drive keeps in its bin, and counts, what was in a file as it was deleted."""
    mirror, sizes, unlink = tmp_path / "mirror", [], mirrors.Path.unlink

    def watch(path, missing_ok=False):
        if path.name.startswith("epoch-") and path.parent == mirror:
            sizes.append((path.name, path.stat().st_size))
        unlink(path, missing_ok)

    monkeypatch.setattr(mirrors.Path, "unlink", watch)
    make_run("plateau", epochs=4, checkpoint=tmp_path / "run", mirror=mirror)
    assert sizes == [("epoch-0001.pt", 0), ("epoch-0002.pt", 0)]


def test_an_old_epoch_that_was_emptied_and_not_removed_is_taken_for_none(tmp_path):
    mirror = tmp_path / "mirror"
    model, history = make_run("plateau", epochs=4)
    make_run("plateau", epochs=3, checkpoint=tmp_path / "old", mirror=mirror)
    (mirror / "epoch-0001.pt").touch()
    options = {"checkpoint": tmp_path / "run", "mirror": mirror, "resume": True}
    resumed_model, resumed = make_run("plateau", epochs=4, **options)
    assert without_time(resumed) == without_time(history)
    assert_equal_weights(resumed_model.state_dict(), model.state_dict())
    assert sorted(path.name for path in mirror.glob("epoch-*")) == ["epoch-0003.pt", "epoch-0004.pt"]


def test_what_arrived_damaged_is_copied_again(tmp_path):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    make_run("plateau", epochs=2, checkpoint=run, mirror=mirror)
    content = (mirror / "last.pt").read_bytes()
    (mirror / "last.pt").write_bytes(content[:-1] + b"x")
    mirrors.copy_run(run, mirror, print)
    assert contents(mirror) == contents(run)


def test_a_mirror_of_another_run_is_refused_and_left_alone(tmp_path):
    make_run("plateau", epochs=1, checkpoint=tmp_path / "first", mirror=tmp_path / "mirror")
    before = contents(tmp_path / "mirror")
    with pytest.raises(ValueError, match=r"the mirror .* already holds a run; continue it with resume='auto'"):
        make_run("plateau", epochs=1, checkpoint=tmp_path / "second", mirror=tmp_path / "mirror")
    make_run("step", epochs=2, checkpoint=tmp_path / "third", log=StopAfter(1))
    shutil.copytree(tmp_path / "third", tmp_path / "other")
    history = (tmp_path / "other" / "history.json").read_text()
    (tmp_path / "other" / "history.json").write_text(history.replace('"epoch": 1', '"epoch": 9'))
    with pytest.raises(ValueError, match="holds 1 epochs, which are not those of the run in"):
        make_run("step", epochs=2, checkpoint=tmp_path / "other", mirror=tmp_path / "mirror", resume=True)
    assert contents(tmp_path / "mirror") == before
    assert not (tmp_path / "second" / "history.json").exists()


def test_a_mirror_that_is_ahead_of_its_run_says_so(tmp_path):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    make_run("plateau", epochs=2, checkpoint=run, mirror=mirror)
    shutil.copytree(mirror, tmp_path / "elsewhere")
    make_run("plateau", epochs=3, checkpoint=tmp_path / "elsewhere", mirror=mirror, resume=True)
    with pytest.raises(
        ValueError, match=r"holds 3 epochs of this run and .* only 2; resume from the mirror in another"
    ):
        make_run("plateau", epochs=3, checkpoint=run, mirror=mirror, resume=True)


@pytest.mark.parametrize("damaged", [[3], [2, 3]])
def test_what_is_damaged_in_the_run_is_taken_from_its_mirror(damaged, tmp_path):
    run, mirror, lines = tmp_path / "run", tmp_path / "mirror", []
    make_run("plateau", epochs=3, checkpoint=run, mirror=mirror)
    for epoch in damaged:
        (run / f"epoch-000{epoch}.pt").write_bytes(b"damaged")
    make_run("plateau", epochs=4, checkpoint=run, mirror=mirror, resume=True, log=lines.append)
    assert f"{run / 'epoch-0003.pt'} was damaged and is the mirror's again" in lines
    assert any(line.startswith("Resuming after epoch 3") for line in lines)
    assert contents(mirror) == contents(run)


def test_the_best_weights_of_a_mirror_that_is_behind_are_not_taken_for_the_runs(tmp_path):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    make_run("plateau", epochs=1, checkpoint=run, mirror=mirror)
    make_run("plateau", epochs=3, checkpoint=run, resume=True)
    damaged = (run / "best.pt").read_bytes()[:-1] + b"x"
    (run / "best.pt").write_bytes(damaged)
    lines = []
    mirrors.mend_run(run, mirror, lines.append)
    assert lines == [] and (run / "best.pt").read_bytes() == damaged


def test_a_run_that_goes_back_over_a_damaged_epoch_keeps_its_mirror(tmp_path):
    run, mirror, lines = tmp_path / "run", tmp_path / "mirror", []
    make_run("plateau", epochs=3, checkpoint=run, mirror=mirror)
    for folder in (run, mirror):
        (folder / "epoch-0003.pt").write_bytes(b"damaged")
    make_run("plateau", epochs=4, checkpoint=run, mirror=mirror, resume=True, log=lines.append)
    assert any(line.startswith("Resuming after epoch 2") for line in lines)
    assert not any("is not up to date" in line for line in lines)
    assert contents(mirror) == contents(run)


def test_files_of_others_in_the_mirror_are_neither_overwritten_nor_removed(tmp_path):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    make_run("plateau", epochs=2, checkpoint=run, log=StopAfter(1))
    mirror.mkdir()
    (mirror / "best.pt").write_bytes(b"of another tool")
    with pytest.raises(ValueError, match=r"holds best\.pt and no history\.json, which are not those of the run"):
        make_run("plateau", epochs=2, checkpoint=run, mirror=mirror, resume=True)
    lines = []
    mirrors.copy_run(run, mirror, lines.append)
    assert lines[0].startswith("Warning") and contents(mirror) == {"best.pt": b"of another tool"}


def test_of_two_runs_with_one_new_mirror_the_second_only_warns(tmp_path):
    mirror, lines = tmp_path / "mirror", []

    def claim(line):
        lines.append(line)
        if line == "EPOCH: 1":
            make_run("plateau", epochs=2, checkpoint=tmp_path / "first", mirror=mirror)

    make_run("step", epochs=2, checkpoint=tmp_path / "second", mirror=mirror, seed=5, log=claim)
    assert sum(line.startswith("Warning") for line in lines) == 2
    assert contents(mirror) == contents(tmp_path / "first")


def test_nothing_is_restored_into_a_folder_in_which_another_run_trains(tmp_path):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    make_run("plateau", epochs=2, checkpoint=tmp_path / "old", mirror=mirror)
    with locked(run), pytest.raises(ValueError, match="another run is training in"):
        make_run("plateau", checkpoint=run, mirror=mirror, resume=True)
    assert contents(run) == {}


def test_a_restore_cut_at_any_file_is_taken_up_again(tmp_path, monkeypatch):
    mirror = tmp_path / "mirror"
    make_run("plateau", epochs=2, checkpoint=tmp_path / "old", mirror=mirror)
    write, expected = mirrors.write_atomic, contents(mirror)
    for files in range(len(expected)):
        folder, left = tmp_path / f"run-{files}", iter(range(files))
        folder.mkdir()

        def cut(path, content, left=left):
            next(left)
            write(path, content)

        monkeypatch.setattr(mirrors, "write_atomic", cut)
        with pytest.raises(StopIteration):
            mirrors.restore_run(folder, mirror, print)
        monkeypatch.setattr(mirrors, "write_atomic", write)
        mirrors.restore_run(folder, mirror, print)
        assert contents(folder) == expected


def test_damage_does_not_spread_to_the_mirror(tmp_path):
    run, mirror, lines = tmp_path / "run", tmp_path / "mirror", []
    make_run("plateau", epochs=2, checkpoint=run, mirror=mirror)
    expected = contents(mirror)
    (run / "epoch-0002.pt").write_bytes(b"short")
    middle = bytearray(expected["best.pt"])
    middle[len(middle) // 2] ^= 1
    (mirror / "best.pt").write_bytes(middle)
    mirrors.copy_run(run, mirror, lines.append)
    assert contents(mirror) == expected
    assert len(lines) == 1 and "epoch-0002.pt is damaged and not copied to the mirror" in lines[0]


def test_a_record_cut_short_is_named(tmp_path):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    make_run("plateau", epochs=1, checkpoint=run, mirror=mirror)
    (mirror / "history.json").write_text('{"rows": [')
    with pytest.raises(ValueError, match=r"history\.json is not the record of a run"):
        make_run("plateau", epochs=2, checkpoint=run, mirror=mirror, resume=True)


@pytest.mark.parametrize("damaged", [b'{"settings": {}, "rows": [', b"\xff", b"[]"])
def test_the_runs_own_record_is_written_anew_if_it_cannot_be_read(damaged, tmp_path):
    run, mirror, lines = tmp_path / "run", tmp_path / "mirror", []
    model, history = make_run("plateau", epochs=3)
    make_run("plateau", epochs=2, checkpoint=run, mirror=mirror)
    (run / "history.json").write_bytes(damaged)
    options = {"checkpoint": run, "mirror": mirror, "resume": "auto", "log": lines.append}
    resumed_model, resumed = make_run("plateau", epochs=3, **options)
    assert lines[0] == f"{run / 'history.json'} was damaged and is that of epoch 2 again"
    assert without_time(resumed) == without_time(history)
    assert_equal_weights(resumed_model.state_dict(), model.state_dict())
    assert contents(mirror) == contents(run)


@pytest.mark.parametrize("lost", [True, False])
def test_a_mirror_whose_record_is_lost_or_empty_is_enough_to_resume_from(lost, tmp_path):
    run, mirror, lines = tmp_path / "run", tmp_path / "mirror", []
    model, history = make_run("plateau", epochs=4)
    make_run("plateau", epochs=2, checkpoint=tmp_path / "old", mirror=mirror)
    record = (mirror / "history.json").read_bytes()
    (mirror / "history.json").write_bytes(b"")
    if lost:
        (mirror / "history.json").unlink()
    with pytest.raises(ValueError, match="cannot resume: scheduler class"):  # another run neither takes nor harms it
        make_run("step", checkpoint=run, mirror=mirror, resume="auto", log=lines.append)
    assert lines[0] == f"{mirror / 'history.json'} was lost or damaged and is that of epoch 2 again"
    assert contents(run) == {} and contents(mirror) == {**contents(tmp_path / "old"), "history.json": record}
    (mirror / "history.json").write_bytes(b"")
    if lost:
        (mirror / "history.json").unlink()
    options = {"checkpoint": run, "mirror": mirror, "resume": "auto"}
    resumed_model, resumed = make_run("plateau", epochs=4, **options)
    assert without_time(resumed) == without_time(history)
    assert_equal_weights(resumed_model.state_dict(), model.state_dict())
    assert contents(mirror) == contents(run)


@pytest.mark.parametrize("options", [{"mirror": True, "resume": "auto"}, {"resume": "auto"}, {"mirror": True}])
def test_that_neither_place_holds_a_run_is_said_where_one_was_looked_for_in_both(options, tmp_path):
    run, mirror, lines = tmp_path / "run", tmp_path / "mirror", []
    given = {**options, "mirror": mirror} if "mirror" in options else options
    make_run("plateau", epochs=1, checkpoint=run, log=lines.append, **given)
    said = f"A new run: neither {run} nor its mirror {mirror} holds one"
    assert [line for line in lines if line.startswith("A new")] == ([said] if len(options) == 2 else [])
    make_run("plateau", epochs=2, checkpoint=run, log=lines.append, **{**given, "resume": "auto"})
    assert len([line for line in lines if line.startswith("A new")]) == len(options) - 1


def test_a_record_without_an_epoch_is_named_and_left_alone(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "history.json").write_bytes(b"notes")
    with pytest.raises(ValueError, match=r"history\.json is not the record of a run .*; put it right, or name another"):
        make_run("plateau", epochs=1, checkpoint=run, mirror=tmp_path / "mirror", resume="auto")
    assert contents(run) == {"history.json": b"notes"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mirror": "m"}, "mirror copies the folder of the run: give checkpoint= as well"),
        (
            {"mirror": "run", "checkpoint": "./run"},
            "mirror run is in the folder of the run itself; name a second place",
        ),
        ({"mirror": "run/copy", "checkpoint": "run"}, "mirror run/copy is in the folder of the run itself"),
        ({"mirror": "file", "checkpoint": "run"}, "mirror file is a file; name a folder"),
    ],
)
def test_misuse_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=message):
        make_run("plateau", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_cannot_be_smuggled_in_through_a_damaged_mirror(tmp_path):
    run, mirror = tmp_path / "run", tmp_path / "mirror"
    make_run("plateau", epochs=1, checkpoint=run, mirror=mirror)
    shutil.rmtree(run)
    torch.save({"epoch": 1}, mirror / "epoch-0001.pt")  # without its checksum
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        make_run("plateau", epochs=2, checkpoint=run, mirror=mirror, resume=True)
