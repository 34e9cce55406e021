"""The peak operations per second of a GPU: the divisor of MFU (model FLOPs utilisation)."""

from indextts_job.hardware.plan import HardwareFacts, Precision

TENSOR_TFLOPS = {
    "T4": 65.0,
    "V100": 125.0,
    "A10": 125.0,
    "A30": 165.0,
    "A40": 149.7,
    "A100": 312.0,
    "L4": 121.0,
    "L40": 181.0,
    "L40S": 362.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "B200": 2250.0,
    "RTX 3090": 71.0,
    "RTX 4090": 165.2,
}
"""10^12 operations per second in 16 bit with float32 accumulation, dense, from NVIDIA's datasheets; by words of the
name that CUDA reports."""
OTHER_CARDS = frozenset({"MIG", "Ti", "SUPER", "D", "Laptop"})
"""Words in the name of a slice of a GPU, or of a variant with other figures."""


def peak_flops(facts: HardwareFacts, precision: Precision) -> float:
    """Operations per second of one device; 0 when unknown: a CPU, a slice of a GPU, a card that is not in the table.

    Args:
        facts: The facts about the device.
        precision: The precision of the training.
    """
    # float32 has no entry: TF32 and plain float32 differ by an order of magnitude.
    if facts.device != "cuda" or precision == "float32":
        return 0.0
    words = set(facts.name.replace("-", " ").split())
    if OTHER_CARDS & words:
        return 0.0
    found = [name for name in TENSOR_TFLOPS if words.issuperset(name.split())]
    # The longest is the most exact: "H100 PCIe" before "H100".
    return 1e12 * TENSOR_TFLOPS[max(found, key=len)] if found else 0.0
