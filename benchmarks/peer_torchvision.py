#!/usr/bin/env python3
"""Time torchvision's Mask R-CNN R50-FPN: benchmarks/peers.py runs this, in an interpreter that has torchvision.

    python benchmarks/peer_torchvision.py inference|training fp32|bf16 REPEATS

The last line printed is JSON: the program, the seconds of each run, and how much was found.
"""
import json
import sys

import torch
import torchvision
from peer_work import HEIGHT, NUM_CLASSES, NUM_OBJECTS, WIDTH, draw_objects, timed
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone


def make_model():
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3,
                                   norm_layer=torchvision.ops.FrozenBatchNorm2d)
    for name, buffer in backbone.named_buffers():
        if name.endswith("bn3.weight"):
            buffer.fill_(0.25)  # keeps the activations of random weights bounded
    model = torchvision.models.detection.MaskRCNN(
        backbone, NUM_CLASSES + 1, min_size=HEIGHT, max_size=WIDTH, rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=1000, box_detections_per_img=100)
    spread_scores(model)
    return model


def spread_scores(model):
    """Scale the class scores of random weights to a deviation of 1: about one in fifty passes torchvision's threshold.

    So there are more than 100 detections, without a suppression of 80,000 boxes, which no trained network asks for.
    """
    layer, scores = model.roi_heads.box_predictor.cls_score, []
    hook = layer.register_forward_hook(lambda _layer, _inputs, output: scores.append(output))
    with torch.no_grad():
        model.eval()([torch.rand(3, HEIGHT, WIDTH)])
        layer.weight /= scores[0].std()
    hook.remove()


def time_inference(model, image, repeats):
    model.eval()

    def network_only():
        images, _ = model.transform(image)
        features = model.backbone(images.tensors)
        proposals, _ = model.rpn(images, features)
        detections, _ = model.roi_heads(features, proposals, images.image_sizes)
        return proposals, detections

    with torch.inference_mode():
        proposals, detections = network_only()
        return {"seconds": timed(network_only, repeats), "also": {"with pasting": timed(lambda: model(image), repeats)},
                "counts": {"proposals": len(proposals[0]), "detections": len(detections[0]["boxes"])}}


def time_training(model, image, repeats):
    model.train()
    boxes, labels, masks = (torch.tensor(array) for array in draw_objects())
    target = [{"boxes": boxes, "labels": labels, "masks": masks}]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4)

    def step():
        optimizer.zero_grad()
        sum(model(image, target).values()).backward()
        optimizer.step()

    return {"seconds": timed(step, repeats), "counts": {"objects": NUM_OBJECTS}}


def main(what, precision, repeats):
    torch.manual_seed(0)
    model = make_model()
    image = [torch.rand(3, HEIGHT, WIDTH)]
    time_it = {"inference": time_inference, "training": time_training}[what]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        result = time_it(model, image, int(repeats))
    program = f"torchvision {torchvision.__version__}, {torch.get_num_threads()} threads"
    print(json.dumps({"program": program, **result}))


if __name__ == "__main__":
    main(*sys.argv[1:])
