"""Knows who may use what and when: identities, leases, the queue, policies.

``leases``    the lease engine: pure; events and the time in, changed records out
``policies``  what a client may do with an exporter: pure
``store``     where records are kept, with compare-and-swap; ``sqlite`` is the embedded one
``keys``      signing keys, the lab's CA, tokens
``lab``       the service: who is connected, what they ask, what they are told
``serve``     its listeners and tasks; ``http`` is the one for machines that watch
"""
