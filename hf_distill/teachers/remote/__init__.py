"""Clients of teachers on a server: ours (`HTTPTeacher`) and vLLM's (`VLLMTeacher`)."""

from hf_distill.teachers.remote.http_teacher import HTTPTeacher
from hf_distill.teachers.remote.vllm_teacher import VLLMTeacher

__all__ = ["HTTPTeacher", "VLLMTeacher"]
