"""What makes a device's streams usable by programs that know nothing of jmp. They use the client API only.

``expect``   pexpect on a console
``terminal`` a console on the user's terminal
``pty``      a local pseudo-terminal for a remote console
``forward``  local ports for a device's ports
``listen``   the local sockets of those ports
"""
