"""Serve compact models over the network, or hand them to servers that do.

`serve` answers the Open Inference Protocol version 2 (the one of KServe and Triton) over REST and gRPC.

| file | question |
|---|---|
| options.py | what can an operator set, and which values have a meaning? |
| extra.py | are the packages that a server needs installed? |
| server.py | how does a server start, and how does it stop without losing a request? |
| models.py | which models are served, and which revision of each? |
| revision.py | is a file fit to be served? |
| snapshot.py | how is a model of several files kept from changing under a server? |
| reloading.py | how does a replaced file take over while requests go on? |
| batching.py | how do concurrent requests share a run without leaving the event loop's order? |
| request.py | what does one inference request ask for, whichever protocol it came by? |
| failures.py | which status does each failure become? |
| datatypes.py | what does the protocol call a dtype? |
| json_values.py | how do JSON numbers become a tensor, exactly or not at all? |
| decoding.py, encoding.py | how is a REST request read, and its answer written? |
| rest.py | how is a REST request answered? |
| pages.py | what do the pages beside inference say? |
| openapi.py | what does the OpenAPI page say? |
| connections.py | how is a client that stalls or never ends kept from holding the server? |
| leaving.py | how are the last connections and calls taken before a server ends? |
| grpc_messages.py, grpc_service.py | what are the gRPC messages, and how are they answered? |
| access.py | who may ask? |
| metrics.py, logs.py | what does an operator see? |
| triton.py, kserve.py | how do Triton and Kubernetes run the same model? |
"""

from __future__ import annotations

from l0runtime.serving.options import Limits, ServeOptions

__all__ = ["Limits", "ServeOptions"]
