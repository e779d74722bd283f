"""What a model takes and gives in its natural form: text, image, audio, a table's row; and back to plain answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepseek.lazy import lazy_names

_NAMES = {
    "Form": "deepseek.serve.forms.form:Form",
    "FormLimits": "deepseek.serve.forms.form:FormLimits",
    "Row": "deepseek.serve.forms.form:Row",
    "form_of": "deepseek.serve.forms.build:form_of",
}

__all__ = list(_NAMES)

if TYPE_CHECKING:
    from deepseek.serve.forms.build import form_of as form_of
    from deepseek.serve.forms.form import Form as Form
    from deepseek.serve.forms.form import FormLimits as FormLimits
    from deepseek.serve.forms.form import Row as Row
else:
    __getattr__, __dir__ = lazy_names(__name__, _NAMES)
