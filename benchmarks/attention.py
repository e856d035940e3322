"""The vision transformer's attention on a CPU: written out, as `vit` has it there, beside torch's fused one."""

import common  # first: it finds the package
import torch
import torch.nn.functional as F

from eva_utils.models.vit import attention
from eva_utils.utils.runtime import keep_freed_memory, pick_precision


def main():
    parser = common.parser(__doc__, rounds=9)
    args = parser.parse_args()
    dtype = pick_precision("auto", torch.device("cpu"))
    keep_freed_memory()
    heads = torch.randn(3, 128, 6, 65, 32, dtype=dtype, requires_grad=True)

    def forward_and_back(way):
        def run():
            heads.grad = None
            way(*heads).sum().backward()

        return run

    taken = common.seconds(
        {"fused": forward_and_back(F.scaled_dot_product_attention), "ours": forward_and_back(attention)}, args.rounds
    )
    rows = [
        common.Row("scaled_dot_product_attention", f"{1000 * taken['fused']:.1f} ms"),
        common.Row("written out", f"{1000 * taken['ours']:.1f} ms"),
        common.at_least("written out against fused", taken["fused"] / taken["ours"], 1.0),
    ]
    common.publish("Attention of a block of vit, 128 images, forward and backward", rows)


if __name__ == "__main__":
    main()
