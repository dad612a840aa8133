"""Lets torchvision be imported beside a CPU build of torch.

The package index has torchvision as a CUDA build only. Its compiled half can't be loaded here, and
its import fails over two operators that it expects from there; `transformers` needs only the rest,
for the pixels of a video. `make test-vllm` puts this module into its environment.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec


class _DefinesOperators(MetaPathFinder):
    """Defines the operators, without an implementation, when torchvision is about to be found."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(
                    f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
        return None


_finder = _DefinesOperators()  # kept, since its end would take the definitions back
sys.meta_path.insert(0, _finder)
