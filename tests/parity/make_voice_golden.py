"""Writes tests/golden/voices.pt as the official demo writes voices:  python -m tests.parity.make_voice_golden"""

from __future__ import annotations

from typing import Any

from tests.golden_voice import PATH, items


def demo_payload() -> dict[str, Any]:
    """What the official demo gives to `torch.save`, in tensors that are views of larger storages."""
    import torch

    first, second = items()
    room = torch.full((2, 5, 9), 36)
    room[1, :, :7] = torch.from_numpy(first["ref_code"]).T
    wide = torch.full((12,), 9.0)
    wide[::2] = torch.from_numpy(second["ref_spk_embedding"])
    first |= {
        "ref_code": room[1, :, :7].T,
        "ref_spk_embedding": torch.from_numpy(first["ref_spk_embedding"]).to(torch.bfloat16),
    }
    second |= {"ref_spk_embedding": wide[::2]}
    return {"items": [first, second]}


def main() -> None:
    import torch

    torch.save(demo_payload(), PATH)
    print(f"{PATH}: {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
