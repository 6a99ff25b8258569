"""Sockets to real peers: thin I/O over the codecs of `chamber.wire`."""
