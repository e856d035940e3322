"""Records to draw, and what stands in a figure."""

import copy

import torch

from eva_utils.utils.predictions import Record, Records, predict


def labels(axis):
    return {line.get_label(): line for line in axis.lines}


def records(data, count, asked=None):
    generator = torch.Generator().manual_seed(count)
    made = []
    for index in range(count):
        target = index % 10
        image = 2 * torch.rand(3, 32, 32, generator=generator) - 1  # of every data's colours
        made.append(Record(index + 7, image, target, (target + 1) % 10, 0.5 + index / 100))
    return Records(made, "misclassified", asked or count, count)


def records_of(model, count, right=False):
    """Records of random images that hold what the model says of them."""
    images = 2 * torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(count)) - 1
    with torch.no_grad():
        said = copy.deepcopy(model).eval()(images).argmax(1)
    predictions = predict(model, [(images, said if right else (said + 1) % 10)], precision="float32")
    return predictions.correct(count) if right else predictions.wrong(count)


def visible(figure):
    return [axis for axis in figure.axes if axis.get_visible()]


def texts(figure):
    found = [figure.get_suptitle()]
    for axis in visible(figure):
        found += [axis.get_title(), axis.get_xlabel(), axis.get_ylabel()]
    return [text for text in found if text]


def overlaps(figure):
    """Pairs of texts whose boxes overlap by more than a pixel, and texts outside the figure."""
    figure.draw_without_rendering()
    boxes = []
    for axis in visible(figure):
        for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
            if text.get_text():
                boxes.append((text.get_text(), text.get_window_extent()))
    boxes += [(text.get_text(), text.get_window_extent()) for text in figure.texts]
    clashes = [
        (first, second)
        for number, (first, a) in enumerate(boxes)
        for second, b in boxes[number + 1 :]
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]
    width, height = figure.canvas.get_width_height()
    outside = [text for text, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]
    return clashes, outside


class LongNames:
    classes = tuple(f"an exceeding $dollar$ name, number {n}, longer than any line" for n in range(10))
    mean, std = (0.5,) * 3, (0.25,) * 3
