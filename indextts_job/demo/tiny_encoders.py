"""Small random encoders in the released formats: all the files that a preparation reads, in a few seconds.

Their codes and conditions mean nothing, but they depend on the audio as those of the released encoders do.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from indextts_job.demo.world import CODES
from indextts_job.model.config import CONFORMER_INPUT_WIDTH
from indextts_job.model.versions import ModelVersion

LAYERS = 1
"""Of w2v-BERT; a layer of the released width has 7 million weights besides its feed-forward ones."""
_W2V_BERT = {
    "model_type": "wav2vec2-bert",
    "hidden_size": CONFORMER_INPUT_WIDTH,
    "num_hidden_layers": LAYERS + 1,  # one more than is used, as in the release
    "num_attention_heads": 16,
    "intermediate_size": 64,
    "feature_projection_input_dim": 160,
}
_CODEC_WIDTH, _CODEC_INNER, _CODEC_LAYERS, _CODE_WIDTH = 16, 24, 2, 8


@dataclass(frozen=True, slots=True)
class TinyEncoders:
    """Paths of the files."""

    folder: Path
    version: ModelVersion

    def settings(self) -> dict[str, object]:
        """The `encoders` section of a configuration."""
        named = {
            "w2v_bert": str(self.folder / "w2v-bert-2.0"),
            "statistics": str(self.folder / "wav2vec2bert_stats.pt"),
            "codec": str(self.folder / ("codec.pth" if self.version.speaker_width else "model.safetensors")),
            "hidden_state": LAYERS,
        }
        return {**named, **({"campplus": str(self.folder / "campplus.bin")} if self.version.speaker_width else {})}


def make_encoders(folder: Path, version: ModelVersion, seed: int = 11) -> TinyEncoders:
    """Write encoders into a folder.

    Args:
        folder: Created if missing.
        version: Version of the model that they are for.
        seed: Of their weights.
    """
    made = TinyEncoders(folder, version)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _write_w2v_bert(folder / "w2v-bert-2.0")
        statistics = {"mean": torch.zeros(CONFORMER_INPUT_WIDTH), "var": torch.ones(CONFORMER_INPUT_WIDTH)}
        torch.save(statistics, folder / "wav2vec2bert_stats.pt")
        codec = _codec_tensors(halves_rate=bool(version.speaker_width))
        if version.speaker_width:
            torch.save({"model": codec}, folder / "codec.pth")
            _write_campplus(folder / "campplus.bin")
        else:
            safetensors.torch.save_file(codec, folder / "model.safetensors")
    return made


def _write_w2v_bert(folder: Path) -> None:
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel  # noqa: PLC0415  # an extra, which takes seconds

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_W2V_BERT), encoding="utf-8")
    model = Wav2Vec2BertModel(Wav2Vec2BertConfig(**_W2V_BERT))
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")


def _codec_tensors(*, halves_rate: bool) -> dict[str, torch.Tensor]:
    from indextts_job.prepare.encoders.codec import CodecEncoder, CodecSizes  # noqa: PLC0415

    sizes = CodecSizes(
        hidden=CONFORMER_INPUT_WIDTH,
        width=_CODEC_WIDTH,
        inner=_CODEC_INNER,
        layers=_CODEC_LAYERS,
        codes=CODES,
        code_width=_CODE_WIDTH,
        halves_rate=halves_rate,
    )
    codec = CodecEncoder(sizes)
    for name, tensor in codec.named_parameters():
        if name.endswith("weight_v"):
            nn.init.normal_(tensor)
    # The other half of the released file, which nothing reads.
    more = {"quantizer.quantizers.0.out_project.bias": torch.zeros(CONFORMER_INPUT_WIDTH)}
    return {name: tensor.detach().clone() for name, tensor in {**codec.state_dict(), **more}.items()}


def _write_campplus(path: Path) -> None:
    from indextts_job.prepare.encoders.campplus import CamPPlus  # noqa: PLC0415

    torch.save(CamPPlus().state_dict(), path)
