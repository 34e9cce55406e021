"""Condition and emotion of a clip: the conditioning encoders of gpt.pth, and for 2.5 CAMPPlus."""

import torch
from torch import Tensor, nn

from indextts_job.model.base_checkpoint import load_conditioning
from indextts_job.model.config import EMOTION_WIDTH, GPTConfig
from indextts_job.model.fingerprint import conditioning_fingerprint, fingerprint
from indextts_job.prepare.encoders.campplus import CamPPlus
from indextts_job.prepare.encoders.conformer import Conformer, Perceiver
from indextts_job.prepare.encoders.weights import load_strictly, read_tensors
from indextts_job.redaction import redacted


class ConditioningEncoders(nn.Module):
    """The modules of gpt.pth that never train, under its names.

    Args:
        config: The model.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width, latents = config.model_dim, config.version.speaker_latents
        if latents and config.condition_module:
            self.conditioning_encoder = Conformer(config.condition_module)
            self.perceiver_encoder = Perceiver(config.condition_module, latents, width)
        self.emo_conditioning_encoder = Conformer(config.emo_condition_module)
        self.emo_perceiver_encoder = Perceiver(config.emo_condition_module, 1, EMOTION_WIDTH)
        self.emovec_layer = nn.Linear(EMOTION_WIDTH, width)
        self.emo_layer = nn.Linear(width, width)

    def condition(self, hidden: Tensor) -> Tensor:
        """The speaker's latents: [frames, 1024] -> [32, dim]."""
        latents: Tensor = self.perceiver_encoder(self.conditioning_encoder(hidden[None]))
        return latents[0]

    def emotion(self, hidden: Tensor) -> Tensor:
        """The emotion vector, after both projections: [frames, 1024] -> [dim]."""
        latents = self.emo_perceiver_encoder(self.emo_conditioning_encoder(hidden[None]))
        vector: Tensor = self.emo_layer(self.emovec_layer(latents[0, 0]))
        return vector


def load_conditioning_encoders(
    url: str, config: GPTConfig, device: torch.device
) -> tuple[GPTConfig, ConditioningEncoders, str]:
    """Read the conditioning encoders of a base checkpoint.

    Args:
        url: The checkpoint.
        config: The model; the checkpoint tells its version.
        device: Where they run.

    Returns:
        The model in the version of the checkpoint, its encoders, and their fingerprint.
    """
    config, tensors = load_conditioning(url, config, "model.base_checkpoint")
    with torch.device("meta"):
        encoders = ConditioningEncoders(config)
    load_strictly(encoders, tensors, redacted(url), lambda _name: False)
    ready = encoders.eval().requires_grad_(requires_grad=False).to(device)
    return config, ready, conditioning_fingerprint(tensors, config)


def load_campplus(url: str, device: torch.device) -> tuple[CamPPlus, str]:
    """Read CAMPPlus.

    Returns:
        The network and its fingerprint.
    """
    with torch.device("meta"):
        network = CamPPlus()
    tensors = read_tensors(url, "campplus_cn_common.bin", "encoders.campplus")
    used = load_strictly(network, tensors, redacted(url), lambda _name: False)
    return network.eval().requires_grad_(requires_grad=False).to(device), fingerprint(used)
