"""What Detectron2 asserts on while it builds is one line before anything is built, with a mend that helps."""

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.model_zoo import model_zoo

from norton_det.d2 import NortonTrainer, add_norton_config, load_config
from norton_det.d2.config_checks import check_model, number_of_classes
from norton_det.d2.config_faults import naming_keys
from norton_det.d2.training_checks import check_training
from norton_det.utils.errors import InputError

TRAIN = {"DATASETS.TRAIN": ("mine",)}


@pytest.mark.parametrize(
    ("keys", "pattern"),
    [
        (
            {"MODEL.META_ARCHITECTURE": "FasterRCNN"},
            "META_ARCHITECTURE: expected one of .* got 'FasterRCNN'; GeneralizedRCNN has all R-CNNs",
        ),
        ({"MODEL.BACKBONE.NAME": "build_resnet_fpn_backbon"}, "did you mean build_resnet_fpn_backbone?"),
        (
            {"MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64]]},
            r"SIZES: expected 1 list or 5, one for each of p2, p3, p4, p5, p6, got 3; change them or the IN_FEATURES",
        ),
        (
            {"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1], [1], [1], [1], [1, 2]]},
            r"as many anchors on each map, got \[1, ",
        ),
        ({"MODEL.ANCHOR_GENERATOR.SIZES": [[], [1]]}, "SIZES: expected a list of 1 values or more, each a list of 1"),
        ({"MODEL.ANCHOR_GENERATOR.NAME": "Default"}, "did you mean DefaultAnchorGenerator?"),
        ({"MODEL.ROI_HEADS.NAME": "CascadeROIHeads"}, "CLS_AGNOSTIC_BBOX_REG: expected True with CascadeROIHeads"),
        ({"MODEL.ROI_HEADS.NAME": "Res5ROIHeads"}, r"ROI_HEADS\.IN_FEATURES: expected one map for Res5ROIHeads"),
        ({"MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFC"}, "did you mean FastRCNNConvFCHead?"),
        ({"MODEL.ROI_BOX_HEAD.NUM_FC": 0}, r"ROI_BOX_HEAD\.NUM_FC: expected a layer, got NUM_FC 0 and NUM_CONV 0; set"),
        ({"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "diou2"}, "expected one of smooth_l1, .*; did you mean diou?"),
        (
            {"MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (1.0, 1.0)},
            "expected a list of 4 values, each a number, more than 0",
        ),
        ({"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "RoIAlign"}, "POOLER_TYPE: .*did you mean ROIAlign"),
        ({"MODEL.ROI_BOX_HEAD.USE_FED_LOSS": True}, "USE_SIGMOID_CE: expected True with USE_FED_LOSS"),
        ({"MODEL.MASK_ON": True, "MODEL.ROI_MASK_HEAD.NAME": "Mask"}, r"ROI_MASK_HEAD\.NAME: expected one of Mask"),
        (
            {"MODEL.KEYPOINT_ON": True, "MODEL.ROI_KEYPOINT_HEAD.NAME": ""},
            r"ROI_KEYPOINT_HEAD\.NAME: expected one of KR",
        ),
        ({"MODEL.FPN.NORM": "XYZ"}, r"MODEL\.FPN\.NORM: expected one of \(empty\), BN, .*, got 'XYZ'"),
        (
            {"MODEL.FPN.NORM": "GN", "MODEL.FPN.OUT_CHANNELS": 100},
            r"GN needs widths in multiples of 32, got 100 of MODEL",
        ),
        ({"MODEL.FPN.FUSE_TYPE": "max"}, "FUSE_TYPE: expected one of sum, avg, got 'max'; "),
        (
            {"MODEL.FPN.IN_FEATURES": ["res3", "res5"]},
            "each is half the one before, got .'res3', 'res5'.; name those in b",
        ),
        ({"MODEL.FPN.IN_FEATURES": []}, r"MODEL\.FPN\.IN_FEATURES: expected some maps of the backbone, got none"),
        (
            {"MODEL.RPN.IN_FEATURES": ["p2", "p7"]},
            r"RPN\.IN_FEATURES: expected one of p2, p3, p4, p5, p6, got 'p7'; MODEL.BACK",
        ),
        ({"MODEL.RPN.IN_FEATURES": ["p2", "p2"]}, r"RPN\.IN_FEATURES: expected each map once"),
        ({"MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p4"]}, r"ROI_HEADS\.IN_FEATURES: .* each is half the one before"),
        ({"MODEL.RPN.IOU_LABELS": [0, 1]}, r"RPN\.IOU_LABELS: expected 3 for 2 IOU_THRESHOLDS, got \[0, 1\]"),
        ({"MODEL.RPN.IOU_THRESHOLDS": [0.7, 0.3]}, r"RPN\.IOU_THRESHOLDS: expected growing numbers above 0"),
        ({"MODEL.RESNETS.DEPTH": 51}, "MODEL.RESNETS.DEPTH: expected one of 18, 34, 50, 101, 152, got 51; 50 is usual"),
        ({"MODEL.RESNETS.DEPTH": 18}, "RES2_OUT_CHANNELS: expected 64 with DEPTH 18, got 256"),
        ({"MODEL.PIXEL_MEAN": [1.0]}, r"PIXEL_MEAN: expected 3 numbers for INPUT\.FORMAT BGR, got \[1\.0\]"),
        ({"MODEL.DEVICE": "gpu"}, "MODEL.DEVICE: expected cpu, cuda or cuda:0, got 'gpu'"),
        ({"INPUT.RANDOM_FLIP": "both"}, "RANDOM_FLIP: expected one of horizontal, vertical, none, got 'both'"),
        ({"SOLVER.MAX_ITER": None}, "MAX_ITER: expected a whole number of 1 or more, got None; the default is 40000"),
        ({"SOLVER.WEIGHT_DECAY": float("nan")}, "WEIGHT_DECAY: expected a number, 0 or more, got nan"),
    ],
)
def test_networks_that_cannot_be_built(keys, pattern):
    with pytest.raises(InputError, match=pattern) as caught:
        check_model(changed(keys))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "pattern"),
    [
        (
            {"DATASETS.TRAIN": ()},
            r"DATASETS\.TRAIN: expected a data set to train on, got none; add --register NAME=JSON",
        ),
        ({"SOLVER.LR_SCHEDULER_NAME": "CosineLR"}, "did you mean WarmupCosineLR?"),
        ({"SOLVER.STEPS": (20, 10)}, r"SOLVER\.STEPS: expected growing iterations, got \[20, 10\]; sort them"),
        ({"SOLVER.STEPS": (50,), "SOLVER.MAX_ITER": 50}, r"expected less than SOLVER\.MAX_ITER 50, got \[50\]"),
        ({"SOLVER.NESTEROV": True, "SOLVER.MOMENTUM": 0.0}, "MOMENTUM: expected more than 0 with NESTEROV"),
        (
            {"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR", "SOLVER.BASE_LR_END": 1.0},
            "BASE_LR_END: expected BASE_LR 0.02",
        ),
        ({"SOLVER.REFERENCE_WORLD_SIZE": 3}, "IMS_PER_BATCH: expected a multiple of REFERENCE_WORLD_SIZE 3, got 16"),
        ({"DATALOADER.SAMPLER_TRAIN": "RandomSampler"}, "SAMPLER_TRAIN: expected one of TrainingSampler, .*; did you"),
        ({"DATALOADER.SAMPLER_TRAIN": "WeightedTrainingSampler"}, "whose DATASETS.TRAIN_REPEAT_FACTOR it lacks"),
        ({"INPUT.MIN_SIZE_TRAIN_SAMPLING": "range"}, r"the least and the greatest size .*; write \(640, 800\)"),
        ({"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "absolute"}, "CROP.SIZE: expected whole pixels with absolute"),
        ({"INPUT.CROP.ENABLED": True, "INPUT.CROP.SIZE": [20.0, 20.0]}, "CROP.SIZE: expected shares up to 1"),
    ],
)
def test_trainings_that_cannot_start(keys, pattern):
    with pytest.raises(InputError, match=pattern):
        check_training(changed(TRAIN | keys))


def changed(keys, file: str = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"):
    cfg = get_cfg()
    add_norton_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(file))
    cfg.MODEL.DEVICE = "cpu"
    for key, value in keys.items():
        *path, name = key.split(".")
        node = cfg
        for part in path:
            node = node[part]
        node[name] = value
    return cfg


@pytest.mark.parametrize(
    "file",
    [
        "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
        "COCO-Detection/faster_rcnn_R_101_DC5_3x.yaml",
        "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml",
        "COCO-Detection/rpn_R_50_FPN_1x.yaml",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x.yaml",
        "COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x.yaml",
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
        "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
        "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml",
        "Misc/mask_rcnn_R_50_FPN_3x_gn.yaml",
        "Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5.yaml",
        "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml",
        "Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x.yaml",
        "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml",
        "Cityscapes/mask_rcnn_R_50_FPN.yaml",
    ],
)
def test_detectron2s_own_configs_are_good(file):
    cfg = changed({}, file)
    check_model(cfg)
    check_training(cfg)


def test_names_of_ones_own_are_left_to_ones_own_trainer():
    class Mine(NortonTrainer):
        @classmethod
        def build_lr_scheduler(cls, cfg, optimizer):
            raise NotImplementedError

        @classmethod
        def build_train_loader(cls, cfg):
            raise NotImplementedError

    cfg = changed({"SOLVER.LR_SCHEDULER_NAME": "mine", "DATASETS.TRAIN": ()})
    check_training(cfg, Mine)
    for trainer in (NortonTrainer, None):
        with pytest.raises(InputError, match="LR_SCHEDULER_NAME: expected one of Warmup"):
            check_training(cfg, trainer)


def test_what_is_left_to_detectron2_names_keys_and_bugs_stay_bugs():
    from detectron2.modeling.matcher import Matcher

    with (
        pytest.raises(
            InputError, match=r"AssertionError in its modeling/matcher\.py \(an assertion\); look at MODEL"
        ) as told,
        naming_keys(),
    ):
        Matcher([-1.0], [0, 1])
    assert isinstance(told.value.__cause__, AssertionError)
    with pytest.raises(AssertionError), naming_keys():
        raise AssertionError
    with pytest.raises(InputError, match=r"^mine$"), naming_keys():
        raise InputError("mine")


@pytest.mark.parametrize(
    ("opts", "pattern"),
    [
        (["DATASETS.TRAIN", "mine"], r"option DATASETS\.TRAIN: Type mismatch .*; a list of one is \"\('mine',\)\"$"),
        (["INPUT.MIN_SIZE_TRAIN", "64"], r"a list of one is \"\('64',\)\"$|a list of one is \"\(64,\)\"$"),
        (["MODEL.DEVICE", "None"], "DEVICE: expected a text, got None"),
        (["MODEL.WEIGHTS", "None"], "WEIGHTS: expected a text, got None"),
        (["OUTPUT_DIR", "None"], "OUTPUT_DIR: expected a text, got None"),
    ],
)
def test_options_that_come_before_all(opts, pattern):
    with pytest.raises(InputError, match=pattern):
        load_config("norton_faster_rcnn.yaml", opts)


def test_the_one_expression_of_detectron2s_files(tmp_path):
    """RetinaNet's anchors are read; what another expression would do is not done."""
    cfg = load_config(model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"), ["MODEL.DEVICE", "cpu"])
    assert [sizes[0] for sizes in cfg.MODEL.ANCHOR_GENERATOR.SIZES] == [32, 64, 128, 256, 512]
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES[0] == pytest.approx([32, 40.3, 50.8], abs=0.03)
    check_model(cfg)
    assert number_of_classes(cfg) == ("MODEL.RETINANET.NUM_CLASSES", 80)
    for expression in ("print(1)", "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [exit()]]"):
        file = tmp_path / "bad.yaml"
        file.write_text(f'MODEL: {{PIXEL_MEAN: !!python/object/apply:eval ["{expression}"]}}')
        with pytest.raises(InputError, match="an expression that would be executed"):
            load_config(str(file))
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):  # outside of it nothing has changed
        yaml.safe_load("!!python/object/apply:eval ['1']")
