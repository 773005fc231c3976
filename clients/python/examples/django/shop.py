"""A shop in one file: a view that changes a row and emits a fact, both or neither.

    pip install ./clients/python django 'psycopg[binary]'
    DATABASE_URL=postgres://postgres@localhost/app python clients/python/examples/django/shop.py
    curl -X POST localhost:8000/orders/42/pay/ -d card=visa
    curl -X POST localhost:8000/orders/43/pay/ -d card=declined

The database needs `sql/factlib.sql`, and a prefix for its facts: ALTER DATABASE app SET factlib.prefix = 'shop'.
"""

import os
import sys
from urllib.parse import unquote, urlsplit

try:
    import django
    from django.conf import settings
    from django.core.management import execute_from_command_line
    from django.db import connection, models, transaction
    from django.http import HttpRequest, JsonResponse
    from django.urls import path
    from django.views.decorators.http import require_POST

    from factlib import emit, wait_lsn
except ImportError as missing:
    sys.exit(f"{missing}\n\n{__doc__}")

url = urlsplit(os.environ.get("DATABASE_URL", "postgres://postgres@localhost/app"))
settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    DEBUG=True,
    ROOT_URLCONF=__name__,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.path[1:],
            "USER": unquote(url.username or ""),
            "PASSWORD": unquote(url.password or ""),
            "HOST": url.hostname,
            "PORT": url.port or 5432,
        }
    },
)
django.setup()


class Order(models.Model):
    """An order, and how it was paid."""

    card = models.TextField()

    class Meta:
        app_label = "shop"


class Declined(Exception):
    """The card is no good."""


@require_POST
def pay(request: HttpRequest, number: int) -> JsonResponse:
    """Pays an order: the row and the fact are committed together."""
    card = request.POST.get("card", "visa")
    try:
        with transaction.atomic():
            Order.objects.update_or_create(id=number, defaults={"card": card})
            fact = emit(connection, "order", str(number), "paid", {"card": card})
            charge(card)
    except Declined:
        # Neither the row nor the fact is there.
        return JsonResponse({"error": "declined"}, status=402)
    # The LSN is what `owlpost wait --lsn` and `/wait` take, for whoever must see the fact in Kafka.
    return JsonResponse({"fact": fact.id, "wait": wait_lsn(connection)})


def charge(card: str) -> None:
    """What may fail after the fact was emitted."""
    if card == "declined":
        raise Declined


urlpatterns = [path("orders/<int:number>/pay/", pay)]

if __name__ == "__main__":
    # A project of your own has migrations.
    if Order._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Order)
    address = sys.argv[1] if len(sys.argv) > 1 else "localhost:8000"
    execute_from_command_line(["shop.py", "runserver", "--noreload", "--skip-checks", address])
