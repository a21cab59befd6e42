"""tools/study.py: a study takes up what is in its table."""


def test_study_resumes(call, half, pictures, tmp_path):
    """One study end to end on tiny pictures; what is in its table is not done again."""
    words = ["methods", "--weights", half, "--data", pictures, "--output", tmp_path, "--image-size", 32, "--resize", 36]
    header = 'rank,method,NMSE,"top1, BN re-estimated"\n'
    done = [f"{rank},{name},0.5,10.0" for rank in (1, 2, 3) for name in ("filter-wise CP", "layer-wise CP", "Tucker-2")]
    (tmp_path / "methods.csv").write_text(header + "\n".join(done) + "\n")
    status, out, err = call("tools/study.py", *words)
    assert status == 0, err
    rows = (tmp_path / "methods.csv").read_text().splitlines()
    assert len(rows) == 13 and rows[1:10] == done and rows[10].startswith("1,SVD,")
    assert (tmp_path / "methods.md").read_text() == out.removesuffix("\n") and "| SVD |" in out
    assert (tmp_path / "methods.png").read_bytes()[:4] == b"\x89PNG"
