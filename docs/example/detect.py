"""Write the people that torchvision's detector finds in a video: boxes for search build --video.

python docs/example/detect.py --video street.mp4 --weights fasterrcnn.pth --boxes boxes.csv

The weights are those of fasterrcnn_mobilenet_v3_large_320_fpn on COCO, from torchvision's page;
any other detector will do that can write the columns frame, x0, y0, x1, y1.
"""

from __future__ import annotations

import argparse
import csv

import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from gallery_search.video import read_frames
from occluded_reid.checkpoint.reading import load_safely
from occluded_reid.utils.files import atomic_write

PERSON = 1  # of COCO's classes


@torch.inference_mode()
def main(words: list[str] | None = None) -> int:
    """Detect, write the file, return the number of boxes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--video", "--weights", "--boxes"):
        parser.add_argument(name, required=True)
    parser.add_argument("--score", type=float, default=0.7, help="least score of a box (0.7)")
    args = parser.parse_args(words)
    detector = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    detector.load_state_dict(load_safely(args.weights))
    detector.eval()
    rows = []
    for number, (_, pixels) in enumerate(read_frames(args.video), start=1):
        (found,) = detector([torch.from_numpy(pixels).permute(2, 0, 1) / 255])
        kept = (found["labels"] == PERSON) & (found["scores"] >= args.score)
        rows += [[number, *box] for box in found["boxes"][kept].tolist()]
    with atomic_write(args.boxes, "w") as stream:
        csv.writer(stream, lineterminator="\n").writerows(
            [["frame", "x0", "y0", "x1", "y1"], *rows]
        )
    return len(rows)


if __name__ == "__main__":
    print(f"{main()} people")
