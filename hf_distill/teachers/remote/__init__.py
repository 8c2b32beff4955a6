"""Clients of teachers on a server: ours (`HTTPTeacher`) and vLLM's (`VLLMTeacher`)."""
