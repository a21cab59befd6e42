"""Cut-out objects of a COCO-format folder: a small classification set for warming a backbone up."""

import json
from pathlib import Path

import numpy as np

MARGIN = 0.15  # of the box's longer side, on each side


def read_crops(
    annotations: str | Path, image_root: str | Path, size: int = 64, background: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Square crops around every object that is no crowd, and some of the ground between them.

    Args:
        annotations: COCO JSON file.
        image_root: folder of its images.
        size: side of the crops, in pixels.
        background: crops per image that meet no object, where such are found.
        seed: of their places.

    Returns:
        images (N, 3, size, size), RGB, uint8, and labels (N,), int64: position of the category in the sorted
        list of ids, the last label being the background.
    """
    import cv2

    content = json.loads(Path(annotations).read_text())
    labels_of = {category: index for index, category in enumerate(sorted(c["id"] for c in content["categories"]))}
    boxes: dict[int, list[dict]] = {}
    for annotation in content["annotations"]:
        boxes.setdefault(annotation["image_id"], []).append(annotation)
    rng = np.random.default_rng(seed)
    images, labels = [], []

    def cut(picture: np.ndarray, x: float, y: float, side: float, label: int) -> None:
        scale = size / side
        matrix = np.array([[scale, 0, -x * scale], [0, scale, -y * scale]])
        crop = cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
        images.append(crop.transpose(2, 0, 1))
        labels.append(label)

    for record in content["images"]:
        picture = cv2.imread(str(Path(image_root) / record["file_name"]), cv2.IMREAD_COLOR)[:, :, ::-1]
        objects = boxes.get(record["id"], [])
        for annotation in objects:
            x, y, w, h = annotation["bbox"]
            if not annotation["iscrowd"] and min(w, h) >= 4:
                side = max(w, h) * (1 + 2 * MARGIN)
                cut(picture, x + w / 2 - side / 2, y + h / 2 - side / 2, side, labels_of[annotation["category_id"]])
        for _ in range(background):
            side = rng.uniform(0.15, 0.5) * min(picture.shape[:2])
            x, y = rng.uniform(0, picture.shape[1] - side), rng.uniform(0, picture.shape[0] - side)
            clear = all(
                x + side <= a[0] or a[0] + a[2] <= x or y + side <= a[1] or a[1] + a[3] <= y
                for a in (annotation["bbox"] for annotation in objects)
            )
            if clear:
                cut(picture, x, y, side, len(labels_of))
    return np.stack(images), np.array(labels, dtype=np.int64)
