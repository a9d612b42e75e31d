"""The exporter owns a device: it runs its drivers for one session after the other, and decides who may touch it.

``config``    the exporter's file: what is in it, what is wrong with it, where files are looked for
``examples``  the commented example configurations that come with jmp
"""
