"""Every route answers as the engine does, and OpenAPI says so."""

import json

import numpy as np
import pytest

from triptych.serving.verbs import VERBS

from .asking import detail, image_bytes, in_base64

IMAGE, OTHER = image_bytes(0), image_bytes(1, "JPEG", (31, 17))


def pixels(data):
    import io

    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def test_captions_are_those_of_the_engine(server, engines):
    items = [{"image": in_base64(IMAGE)}, {"image": in_base64(OTHER)}]
    told = server.post("caption", json={"items": items}).json()
    said = engines["pretraining"].caption([pixels(IMAGE), pixels(OTHER)])
    assert told == {"model": "pretraining", "answers": [{"caption": text} for text in said]}


def test_a_form_asks_the_same_as_json(server):
    files = [("image", IMAGE), ("image", OTHER)]
    for verb, fields, options in (
        ("caption", {}, {"num_beams": 2}),
        ("match", {"text": ["a red circle", "a blue square"]}, {}),
        ("embed_image", {}, {}),
        ("answer", {"question": ["what color is it?", "what?"]}, {"choices": ["yes", "no"]}),
        ("ground", {"phrase": ["red circle", "star"]}, {}),
        ("classify", {}, {"labels": ["red", "blue"], "templates": ["a {}"], "top": 1}),
    ):
        items = [
            {"image": in_base64(image), **{name: text[row] for name, text in fields.items()}}
            for row, (_, image) in enumerate(files)
        ]
        as_json = server.post(verb, json={"items": items, "options": options})
        as_form = server.post(verb, files=files, data={**fields, "options": json.dumps(options)})
        assert as_json.status_code == 200, as_json.text
        assert as_form.json() == as_json.json()
        assert len(as_form.json()["answers"]) == 2


def test_a_field_with_one_value_has_it_for_all_items(server):
    texts = ["a red circle", "a blue square", "a star"]
    many = server.post("match", files=[("image", IMAGE)], data={"text": texts}).json()
    items = [{"image": in_base64(IMAGE), "text": text} for text in texts]
    assert many == server.post("match", json={"items": items}).json()
    assert [answer["text"] for answer in many["answers"]] == texts
    files = [("image", IMAGE), ("image", OTHER)]
    wrong = server.post("match", files=files, data={"text": texts})
    assert "image: is given 2 times for 3 items" in detail(wrong, 422)


def test_search_by_words_by_an_image_and_by_both(server, index_folder):
    index = server.service.index
    text = "a red circle"
    by_image = server.post("search", files={"image": IMAGE}, data={"options": '{"top": 3}'})
    hits = by_image.json()["answers"][0]["hits"]
    assert len(hits) == 3 and hits[0]["path"].endswith("/0.png") and hits[0]["score"] > 0.99
    items = [{"text": text}, {"image": in_base64(IMAGE), "text": text}, {"image": in_base64(OTHER)}]
    told = server.post("search", json={"items": items, "options": {"top": 4, "rerank": 0}}).json()
    assert told["model"] == index_folder.name
    found = [index.search(text, top=4), index.search(text, image=pixels(IMAGE), top=4)]
    assert [answer["hits"] for answer in told["answers"][:2]] == [
        [hit.to_dict() for hit in hits] for hits in found
    ]
    reranked = server.post("search", json={"items": [{"text": text}], "options": {"rerank": 10}})
    assert all(hit["match"] is not None for hit in reranked.json()["answers"][0]["hits"])
    assert "nothing to search for" in detail(server.post("search", json={"items": [{}]}), 422)


def test_models_say_what_they_can_do_and_why_not(server, engines):
    told = server.ask("GET", "/v1/models").json()
    assert [model["name"] for model in told["models"]] == list(engines)
    for model in told["models"]:
        assert {*model["verbs"], *model["refusals"]} == set(VERBS)
        for verb in model["verbs"]:
            assert VERBS[verb].refusal(engines[model["name"]]) is None
        assert all("triptych train" in why for why in model["refusals"].values())
    assert told["index"]["images"] == 10


def test_a_model_is_named_where_several_can(server):
    items = [{"image": in_base64(IMAGE), "text": "a"}]
    assert server.post("match", json={"items": items}).json()["model"] == "pretraining"
    wrong = server.post("match", json={"items": items, "model": "vqa"})
    assert "does not teach `match`" in detail(wrong, 422)
    unknown = server.post("match", json={"items": items, "model": "pretrainin"})
    assert "did you mean 'pretraining'" in detail(unknown, 422)
    statement = {"images": [in_base64(IMAGE)] * 2, "statement": "a"}
    assert "triptych train mplug.nlvr2" in detail(
        server.post("judge", json={"items": [statement]}), 422
    )


def test_errors_have_the_message_of_the_command_line(server):
    image = in_base64(IMAGE)
    cases = {
        "caption": ([{"image": image}], {"max_tokens": 0}, "max_tokens"),
        "match": ([{"image": image, "text": " "}], {}, "text is empty: say something"),
        "classify": ([{"image": image}], {"labels": ["a"]}, "1 label: give two or more"),
        "embed_text": ([{"text": "a"}, {"text": ""}], {}, "text 1 is empty"),
    }
    for verb, (items, options, message) in cases.items():
        told = detail(server.post(verb, json={"items": items, "options": options}), 422)
        assert message in told, told
    assert "Not Found" in detail(server.ask("GET", "/v1/nothing"), 404)
    assert "Method Not Allowed" in detail(server.ask("GET", "/v1/caption"), 405)
    assert "Content-Type" in detail(server.post("caption", content=b"x"), 415)


def test_states_and_metrics(server):
    assert server.ask("GET", "/healthz").json() == {"status": "ok"}
    assert server.ask("GET", "/readyz").json() == {"status": "ready"}
    server.post("embed_text", json={"items": [{"text": "a"}] * 3})
    server.ask("GET", "/a/path/that/nobody/serves")
    text = server.ask("GET", "/metrics").text
    assert 'triptych_requests_total{route="/v1/embed_text",status="200"}' in text
    assert 'triptych_requests_total{route="other",status="404"}' in text
    assert "nobody/serves" not in text
    assert 'triptych_batch_items_bucket{le="4.0",verb="embed_text"}' in text
    assert "triptych_queue_length 0.0" in text and "triptych_body_bytes 0.0" in text


def test_openapi_is_made_from_the_table(server):
    told = server.ask("GET", "/openapi.json").json()
    asked = {path.removeprefix("/v1/") for path, how in told["paths"].items() if "post" in how}
    assert asked == {*VERBS, "search"}
    schemas = told["components"]["schemas"]
    for name, verb in VERBS.items():
        how = told["paths"][f"/v1/{name}"]["post"]
        assert set(how["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
        reference = how["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        body = schemas[reference.rpartition("/")[2]]
        assert body["additionalProperties"] is False
        assert body["properties"]["items"]["maxItems"] == server.settings.max_items
        answers = how["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        one = schemas[answers.rpartition("/")[2]]["properties"]["answers"]["items"]["$ref"]
        assert set(schemas[one.rpartition("/")[2]]["properties"]) == set(verb.gives)
        assert "application/problem+json" in how["responses"]["503"]["content"]
    assert all("cdn" not in str(part) for part in told.values())
    for page in ("/docs", "/redoc"):  # would load scripts from another host
        assert server.ask("GET", page).status_code == 404


@pytest.mark.parametrize("verb", ["caption", "embed_text"])
def test_no_items_and_unknown_fields_are_errors(server, verb):
    for body, message in (
        ({"items": []}, "items: List should have at least 1 item"),
        ({}, "items: Field required"),
        ({"items": [{"text": "a", "image": in_base64(IMAGE), "x": 1}]}, "Extra inputs"),
        ({"items": [], "optoins": {}}, "items"),
    ):
        assert message in detail(server.post(verb, json=body), 422)
