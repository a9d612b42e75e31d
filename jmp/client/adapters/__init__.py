"""What makes a device's streams usable by programs that know nothing of jmp. They use the client API only.

``expect``   pexpect on a console
``terminal`` a console on the user's terminal
``pty``      a local pseudo-terminal for a remote console
``forward``  local ports for a device's ports
``listen``   the local sockets of those ports
``sockets``  streams as sockets of the system, and as ports of pyserial
``openssh``  the way to a device's SSH server for OpenSSH's programs; ``tunnel`` and ``paramiko`` (Fabric) take it
"""
