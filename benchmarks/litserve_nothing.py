"""LitServe with the no-op of `benchmarks.serving`, at `/v1/embeddings` of the port that is given.

A program of its own: `python -m benchmarks.litserve_nothing PORT`.
"""

import sys
from typing import Any

import litserve


class Nothing(litserve.LitAPI):
    """A model whose answer is known before it is asked."""

    def setup(self, device: str) -> None:
        pass

    def predict(self, x: dict[str, Any]) -> dict[str, Any]:
        return {"data": [{"embedding": [1.0]}], "model": x["model"]}


def main() -> None:
    server = litserve.LitServer(Nothing(api_path="/v1/embeddings"), accelerator="cpu")
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False
    )


if __name__ == "__main__":
    main()
