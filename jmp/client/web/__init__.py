"""Pages for a browser on this machine: a console (xterm.js) and a screen (noVNC), from files that come with jmp.

``server``  serves them, and what they connect to, at 127.0.0.1
``page``    the same for the time of a block, for threads and for Trio
``vendor``  xterm.js and noVNC, unchanged; see vendor/README.md
"""
