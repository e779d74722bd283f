"""Streaming speech: features, recognition and ends of utterances as sound comes in; over a websocket and gRPC."""
