"""The download of the sample, from a server on this machine."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from drivelm_source import prepare, write_source

from data_scripts import download_drivelm_sample


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def sample_server(tmp_path, monkeypatch):
    """A server on this machine that offers a small sample under the paths of DriveLM's folder `challenge`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    content = write_source(tmp_path / "source")
    challenge = tmp_path / "challenge"
    (challenge / "data").mkdir(parents=True)
    (challenge / "data/train_sample.json").write_text(json.dumps(content))
    (challenge / "test_eval.json").write_text(json.dumps(content))
    (challenge / "output.json").write_text("[]")
    images = challenge / "llama_adapter_v2_multimodal7b/data/nuscenes"
    images.parent.mkdir(parents=True)
    (tmp_path / "source/nuscenes").rename(images)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=challenge))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", challenge
    server.shutdown()
    server.server_close()


def download(tmp_path, url):
    download_drivelm_sample.main(["--output-dir", str(tmp_path / "sample"), "--base-url", url])


def test_downloaded_sample_can_be_prepared(tmp_path, sample_server, capsys):
    url, challenge = sample_server
    download(tmp_path, url)
    assert "6 key frames, 36 images" in capsys.readouterr().out
    (tmp_path / "sample/train_sample.json").rename(tmp_path / "sample/drivelm.json")
    assert prepare(tmp_path / "sample", "--strict")["splits"]["train"]["frames"] == 2


def test_interrupted_download_resumes(tmp_path, sample_server):
    url, challenge = sample_server
    image = next(challenge.rglob("CAM_BACK/*.jpg"))
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    with pytest.raises(SystemExit, match="is not the file it should be"):
        download(tmp_path, url)
    image.unlink()
    with pytest.raises(SystemExit, match="404"):
        download(tmp_path, url)
    assert not list((tmp_path / "sample").rglob("*.tmp"))
    image.write_bytes(whole)
    download(tmp_path, url)
    assert len(list((tmp_path / "sample").rglob("*.jpg"))) == 36
    download(tmp_path, "http://127.0.0.1:1")  # everything is there: nothing is fetched


def test_download_without_a_network_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(SystemExit, match="cannot fetch http://127.0.0.1:1/data/train_sample.json.*Is there a network"):
        download(tmp_path, "http://127.0.0.1:1")


@pytest.mark.parametrize(
    "outside", ["//{folder}/written.jpg", "/{folder}/written.jpg", "../nuscenes/../../written.jpg"]
)
def test_a_path_that_leaves_the_folder_is_refused_and_nothing_is_written_there(tmp_path, sample_server, outside):
    url, challenge = sample_server
    questions = challenge / "data/train_sample.json"
    content = json.loads(questions.read_text())
    frame = next(iter(next(iter(content.values()))["key_frames"].values()))
    frame["image_paths"]["CAM_BACK"] = outside.format(folder=str(tmp_path).lstrip("/"))
    questions.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="leaves the nuScenes folder"):
        download(tmp_path, url)
    assert not list(tmp_path.rglob("written.jpg")) and not list((tmp_path / "sample").rglob("*.jpg"))
