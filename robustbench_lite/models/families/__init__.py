"""The built-in model families, one a file; found by `registry.find("models", ...)`.

A family is a class with the literals `name`, `summary` and `source`, and
`build(architecture, *, n_classes, shape, pretrained) -> nn.Module` from pixels in [0, 1], NCHW, to
logits. A library of architectures has `names() -> list[str]` too and is asked for as `NAME:ARCHITECTURE`.
"""
