"""What a value may be: Python type hints ↔ schemas that travel in the report, and the checks made against them.

A *schema* is a plain dict in a small subset of JSON Schema, so that it goes over the wire as it is and a client in any
language can read it. ``{}`` allows anything. ``type`` is one of ``string integer number boolean null array object``;
besides it only ``format enum anyOf items prefixItems properties required additionalProperties propertyNames
description default`` are used. One thing differs from JSON: values are those of the wire codec, not text, so that
``format`` may call for another type than a string:

============  ====================  ==========================
``format``    Python                value on the wire
============  ====================  ==========================
(none)        ``str``               a string
``binary``    ``bytes``             bytes
``path``      ``pathlib.Path``      a string
``date-time`` ``datetime.datetime``  a datetime
``duration``  ``datetime.timedelta``  a timedelta
============  ====================  ==========================

There are four ways in which a value meets a type. :func:`check` compares a value of the wire with a schema, strictly.
:func:`bind` does so for all arguments of a call. :func:`parse` reads what was typed on a command line. :func:`load`
builds a dataclass (a driver's configuration, an exporter's file) from YAML data, tolerantly, and collects every problem.
"""

from __future__ import annotations

from jmp.driver.schema.hints import config_schema, plain, schema_of
from jmp.driver.schema.load import load
from jmp.driver.schema.parameters import Parameter, bind, parameters_of, result_of
from jmp.driver.schema.text import duration, parse
from jmp.driver.schema.values import Problem, Schema, check, describe, did_you_mean, join, understood

__all__ = [
    "Parameter",
    "Problem",
    "Schema",
    "bind",
    "check",
    "config_schema",
    "describe",
    "did_you_mean",
    "duration",
    "join",
    "load",
    "parameters_of",
    "parse",
    "plain",
    "result_of",
    "schema_of",
    "understood",
]
