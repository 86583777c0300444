"""From a name to a folder: paths, the hub and its cache; the demo model; the licence of the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatglm.__main__ import main
from chatglm.errors import ModelNotFoundError
from chatglm.loading import examine, find_folder, load, loader, sources
from chatglm.pipeline import load_pipeline
from tests.loading.folders import load_cpu


def test_a_folder_by_its_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    assert find_folder(folder) == find_folder(str(folder)) == folder
    assert find_folder("~/model") == folder
    assert find_folder("model") == Path("model")


@pytest.mark.parametrize("name", ["/absent/folder/deep", "absent", "./absent/x", "C:\\absent", "a/b/c"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="There is no folder") as raised:
        find_folder(name)
    assert "hub id" in raised.value.remedy


Download = Callable[..., str]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Download], None]:
    """Put a function in the place of the hub's download."""
    import huggingface_hub

    def replace(download: Download) -> None:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    return replace


def test_a_hub_model_in_the_local_cache_needs_no_network(folder: Path, hub: Callable[[Download], None]) -> None:
    def download(model_id: str, *, local_files_only: bool = False, **options: Any) -> str:
        assert local_files_only
        return str(folder)

    hub(download)
    assert find_folder("zai-org/chatglm-6b") == folder


def test_a_hub_model_is_downloaded_without_its_code(folder: Path, tmp_path: Path, hub: Any) -> None:
    """The cache may hold the tokenizer alone; then the rest is fetched."""
    (tmp_path / "part").mkdir()
    asked: list[dict[str, Any]] = []

    def download(model_id: str, *, local_files_only: bool = False, **options: Any) -> str:
        asked.append(options)
        return str(tmp_path / "part") if local_files_only else str(folder)

    hub(download)
    assert find_folder("zai-org/chatglm-6b") == folder
    assert not any(pattern.endswith(".py") for pattern in asked[1]["allow_patterns"])


def test_a_hub_model_without_a_network(hub: Callable[[Download], None]) -> None:
    def download(model_id: str, **options: Any) -> str:
        raise ConnectionError("Name or service not known")

    hub(download)
    with pytest.raises(ModelNotFoundError) as raised:
        load("zai-org/chatglm-6b")
    for word in ("zai-org/chatglm-6b", "cannot be fetched", "hf download zai-org/chatglm-6b --local-dir chatglm-6b"):
        assert word in str(raised.value)


def test_a_hub_model_that_does_not_exist(hub: Callable[[Download], None]) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    class NotFound(RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")

    def download(model_id: str, **options: Any) -> str:
        raise NotFound

    hub(download)
    with pytest.raises(ModelNotFoundError, match="no model zai-org/chatglm-7b on the hub"):
        find_folder("zai-org/chatglm-7b")


@pytest.fixture
def cached(folder: Path, tmp_path: Path) -> Path:
    """The model as it lies in the cache of huggingface_hub: links from snapshots/VERSION into blobs/."""
    root = tmp_path / "models--THUDM--chatglm-6b"
    for version in ("a" * 40, "b" * 40):
        (root / "snapshots" / version).mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("b" * 40 + "\n")
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(root / "blobs" / f"{number:040d}")
        (root / "snapshots" / ("b" * 40) / path.name).symlink_to(f"../../blobs/{number:040d}")
    return root


def test_a_folder_of_the_hub_s_cache_means_its_main_version(cached: Path) -> None:
    snapshot = cached / "snapshots" / ("b" * 40)
    assert find_folder(cached) == find_folder(snapshot) == snapshot
    assert examine(cached).is_healthy
    with load_pipeline(cached) as pipe:
        assert pipe.name == "chatglm-6b"
        assert pipe.chat("hello", max_new_tokens=2)
    assert main(["doctor", str(cached)]) == main(["convert", str(cached), str(cached.parent / "plain")]) == 0
    assert all(path.is_file() and not path.is_symlink() for path in (cached.parent / "plain").iterdir())
    assert examine(cached.parent / "plain").is_healthy
    (cached / "refs" / "main").unlink()
    with pytest.raises(ModelNotFoundError, match=r"no version 'refs/main'.*aaa.*bbb.*one of the folders in snapshots"):
        find_folder(cached)
    (cached / "snapshots" / ("a" * 40)).rmdir()
    assert find_folder(cached) == snapshot
    (cached / "refs" / "main").write_text("../..")
    with pytest.raises(ModelNotFoundError, match=r"no version '\.\./\.\.'"):
        find_folder(cached)


# --- licence ---


def test_the_licence_of_the_weights_is_shown_once(folder: Path, own_cache: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        load_cpu(folder, report=said.append)
    assert said.count(sources.LICENCE_NOTICE) == 1
    assert (own_cache / sources.LICENCE_FLAG).exists()


def test_a_cache_that_cannot_be_written_is_no_error(folder: Path, own_cache: Path, monkeypatch: Any) -> None:
    (own_cache / "file").write_text("")
    monkeypatch.setenv("CHATGLM_CACHE", str(own_cache / "file" / "inside"))
    said: list[str] = []
    for _ in range(2):
        load_cpu(folder, report=said.append)
    assert said.count(sources.LICENCE_NOTICE) == 2


# --- the demo model ---


@pytest.fixture
def demo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sources, "CHECKPOINT", folder)
    monkeypatch.setattr(loader, "CHECKPOINT", folder)
    return folder


@pytest.mark.parametrize("name", [None, "demo"])
def test_the_demo_is_the_default_and_has_no_licence_notice(name: str | None, demo: Path) -> None:
    said: list[str] = []
    loaded = load_cpu(name, report=said.append)
    assert loaded.is_demo
    assert loaded.folder == demo
    assert sources.LICENCE_NOTICE not in said


def test_an_installation_without_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHECKPOINT", tmp_path / "absent")
    with pytest.raises(ModelNotFoundError, match="demo model is absent"):
        load()
