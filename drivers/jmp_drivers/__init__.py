"""The drivers that come with jmp, in the shape of any other driver distribution.

One module per kind of device; the entry-point table in pyproject.toml is the index. ``console`` is no driver but what the
drivers with a console share.
"""
