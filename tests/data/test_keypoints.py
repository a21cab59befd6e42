"""What a mirrored picture swaps follows from the names of keypoints, however they say a side; sigmas fit in number."""

import pytest

from norton_det.data.coco import KEYPOINT_NAMES
from norton_det.data.keypoints import choose_sigmas, find_sides, same_keypoints

PARTS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
AP10K = [
    "L_Eye", "R_Eye", "Nose", "Neck", "Root of tail", "L_Shoulder", "L_Elbow", "L_F_Paw", "R_Shoulder", "R_Elbow",
    "R_F_Paw", "L_Hip", "L_Knee", "L_B_Paw", "R_Hip", "R_Knee", "R_B_Paw",
]  # fmt: skip
MPII = [*(f"{side}_{part}" for side in "rl" for part in PARTS), "pelvis", "thorax", "upper_neck", "head_top"]
CROWD_POSE = [*(f"{side}_{part}" for part in PARTS for side in ("left", "right")), "top_head", "neck"]
HALPE = [*KEYPOINT_NAMES, "head", "neck", "hip", "left_big_toe", "right_big_toe", "left_heel", "right_heel"]
OPENPOSE = ["Nose", "Neck", "RShoulder", "LShoulder", "MidHip", "REye", "LEye", "LBigToe", "RBigToe"]
MOUSE = ["snout", "leftear", "rightear", "tailbase", "lshoulder", "rshoulder"]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [(KEYPOINT_NAMES, 8), (AP10K, 7), (MPII, 6), (CROWD_POSE, 6), (HALPE, 10), (OPENPOSE, 3), (MOUSE, 2)],
)
def test_lists_that_are_in_use(names, pairs):
    sides = find_sides(names)
    assert len(sides.pairs) == pairs and not sides.lonely
    swapped = {name for pair in sides.pairs for name in pair}
    assert len(swapped) == 2 * pairs and swapped <= set(names)


@pytest.mark.parametrize(
    "pair",
    ["left_eye right_eye", "L_Eye R_Eye", "eye_left eye_right", "leftEye rightEye", "lefteye righteye", "eye-L eye-R",
     "l_ear_tip r_ear_tip", "eye.left eye.right", "LEye REye", "LEFT_EYE RIGHT_EYE", "eyeL eyeR", "wing_l1 wing_r1",
     "left right", "L R", "leye reye", "wheel_fl wheel_fr", "LF_paw RF_paw", "left_ear rightear", "Lt.hip Rt.hip",
     "bottomLeft bottomRight", "right_of_left_eye left_of_right_eye"],
)  # fmt: skip
def test_a_side_is_read_in_any_form(pair):
    left, right = pair.split()
    for names in ([left, right, "nose"], ["nose", right, left]):
        (found,), lonely = find_sides(names).pairs, find_sides(names).lonely
        assert set(found) == {left, right} and not lonely
        assert found == (left, right) or left.startswith("right")  # two sides: either may be the first
    assert find_sides(["Left Eye", "Right Eye"]).pairs == (("Left Eye", "Right Eye"),)


def test_words_that_only_look_like_a_side():
    names = ["lip", "light", "rear", "leftover", "upright", "nose", "rump", "tail", "Upper Lip", "center"]
    assert find_sides(names) == find_sides([]) and not find_sides(names).lonely


@pytest.mark.parametrize(
    ("names", "lonely"),
    [
        (["left_eye", "nose"], ["left_eye"]),
        (["L_Eye", "left eye", "right_eye"], ["L_Eye", "left eye", "right_eye"]),  # which of the two is the other side
        (["leftear", "nose"], ["leftear"]),
        (["left_eye", "right_eye", "left_of_right_eye"], ["left_of_right_eye"]),
        (["ll", "rl", "lr"], ["ll", "rl", "lr"]),
    ],
)
def test_a_side_whose_other_one_is_not_clear(names, lonely):
    assert list(find_sides(names).lonely) == lonely


def test_lists_are_the_same_in_any_spelling_but_not_in_another_order():
    assert same_keypoints(["L_Eye", "Nose"], ["left eye", "nose"])
    assert not same_keypoints(["left_eye", "right_eye"], ["right_eye", "left_eye"])


def test_sigmas_asked_for_come_before_those_of_the_data_and_of_coco():
    assert choose_sigmas(2, (0.1, 0.2), (0.3, 0.4)) == (0.1, 0.2)
    assert choose_sigmas(2, (0.1,) * 17, (0.3, 0.4)) == (0.3, 0.4)
    assert choose_sigmas(17, (), ()) == ()
    assert choose_sigmas(17, (0.1, 0.2), ()) is choose_sigmas(2, (), ()) is choose_sigmas(2, (0.1, -1), ()) is None
