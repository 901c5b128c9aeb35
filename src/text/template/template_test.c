/* text/template/template_test.c - templates render as Python's jinja2 does.
 *
 * Method: tests/golden/templates.json has several hundred small templates with what jinja2 made of
 * them, or that it raised (tools/make_template_goldens.py). Besides: where output came from, and
 * that nothing a template says makes a rendering run on, grow or nest without end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"
#include "text/template/template.h"

/* Renders; the text, or NULL with the sentence in *err. The caller frees. */
static char *render(const char *text, const char *variables, const char *trusted, char **marks_out,
                    struct err *err)
{
    struct template_input input = { .now = 1700000000 };
    json_t *input_json = json_loads(variables, JSON_ALLOW_NUL, NULL);
    json_t *trusted_json = trusted != NULL ? json_loads(trusted, 0, NULL) : NULL;
    struct template_output output;
    struct template *template = NULL;
    char *rendered = NULL;

    assert_non_null(input_json);
    input.variables = input_json;
    input.trusted = trusted_json;
    template_output_init(&output);
    if (template_create(text, strlen(text), "the template", &template, err) == STATUS_OK &&
        template_render(template, &input, &output, err) == STATUS_OK) {
        assert_int_equal(output.text.size, output.marks.size);
        rendered = calloc(1, output.text.size + 1);
        memcpy(rendered, output.text.size > 0 ? output.text.data : "", output.text.size);
        if (marks_out != NULL) {
            *marks_out = calloc(1, output.text.size + 1);
            for (size_t i = 0; i < output.marks.size; i++)
                (*marks_out)[i] = output.marks.data[i] ? 'u' : '.';
        }
    }
    template_destroy(template);
    template_output_deinit(&output);
    json_decref(input_json);
    json_decref(trusted_json);
    return rendered;
}

static void goldens(void **state)
{
    struct err err;
    json_t *golden = NULL;
    json_t *row;
    size_t index;
    size_t wrong = 0;

    (void)state;
    setenv("TZ", "UTC", 1);
    assert_int_equal(json_read_file("tests/golden/templates.json", 8u << 20, &golden, &err), 0);
    json_array_foreach(json_object_get(golden, "cases"), index, row) {
        const char *text = json_string_value(json_array_get(row, 0));
        json_t *wanted = json_array_get(row, 1);
        struct template_input input = { .now = 1700000000 };
        struct template_output output;
        struct template *template = NULL;
        bool same;

        input.variables = json_object_get(golden, "variables");
        template_output_init(&output);
        if (template_create(text, strlen(text), "t", &template, &err) == STATUS_OK &&
            template_render(template, &input, &output, &err) == STATUS_OK) {
            same = json_is_string(wanted) && json_string_length(wanted) == output.text.size &&
                   (output.text.size == 0 || memcmp(json_string_value(wanted), output.text.data,
                                                    output.text.size) == 0);
            if (!same)
                print_error("%s\n  wants %s\n  is    %s\n", text,
                            json_is_string(wanted) ? json_string_value(wanted) : "an error",
                            output.text.size > 0 ? output.text.data : "");
        } else {
            same = json_is_null(wanted);
            if (!same)
                print_error("%s\n  wants %s\n  says  %s\n", text, json_string_value(wanted),
                            err.message);
        }
        wrong += !same;
        template_destroy(template);
        template_output_deinit(&output);
    }
    assert_true(json_array_size(json_object_get(golden, "cases")) > 700);
    json_decref(golden);
    assert_int_equal(wrong, 0);
}

/* What the template wrote is '.', what came from the input 'u'. */
static void marks(void **state)
{
    static const char variables[] =
        "{\"s\": \"a<b>c\", \"m\": [{\"role\": \"user\", \"content\": \"<x>\"},"
        " {\"role\": \"x<\", \"content\": \"<x>\"}], \"k\": {\"a<\": \"q\"}}";
    static const struct {
        const char *text, *rendered, *marks;
    } cases[] = {
        { "<{{ s }}>", "<a<b>c>", ".uuuuu." },
        { "{{ '<' ~ s[1:3] ~ '>' }}", "<<b>", ".uu." },
        { "{{ '<' + s.replace('b', '|') + '>' }}", "<a<|>c>", ".uu.uu." },
        { "{{ s | upper }}{{ 'x' | upper }}", "A<B>CX", "uuuuu." },
        { "{{ s.split('<')[1] }}{{ s.split('<') | join('<') }}", "b>ca<b>c", "uuuu.uuu" },
        { "{{ ('[' ~ s ~ ']').strip('[]') }}", "a<b>c", "uuuuu" },
        { "{{ m[0].role }}{{ m[0].content }}", "user<x>", "....uuu" },
        { "{{ m[1].role }}", "x<", "uu" },
        { "{{ k | tojson }}", "{\"a<\": \"q\"}", "..uu....u.." },
        { "{{ bos }}{{ s }}", "<s>a<b>c", "...uuuuu" },
        { "{{ '%s|%s' % (s, bos) }}", "a<b>c|<s>", "uuuuu...." },
        { "{{ '{}|'.format(s) }}", "a<b>c|", "uuuuu." },
        { "{% set x %}<{{ s }}>{% endset %}{{ x }}", "<a<b>c>", ".uuuuu." },
        { "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(s) }}", "<a<b>c>", ".uuuuu." },
        { "{{ (s ~ '\\n' ~ 'y') | indent(1) }}", "a<b>c\n y", "uuuuu..." },
        { "{{ [s, '<'] | join('<') | reverse }}", "<<c>b<a", "..uuuuu" },
        { "{{ [s] }}", "['a<b>c']", "..uuuuu.." },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct err err;
        char *found = NULL;
        char *text = render(cases[i].text, variables, "{\"bos\": \"<s>\"}", &found, &err);

        if (text == NULL)
            print_error("%s: %s\n", cases[i].text, err.message);
        assert_non_null(text);
        assert_string_equal(text, cases[i].rendered);
        assert_string_equal(found, cases[i].marks);
        free(text);
        free(found);
    }
}

static void expect_none(char *rendered)
{
    assert_null(rendered);
    free(rendered);
}

static void refuses(const char *text, const char *sentence)
{
    struct err err;
    char *rendered = render(text, "{\"s\": \"xxxxxxxxxxxxxxxx\", \"n\": 5}", NULL, NULL, &err);

    expect_none(rendered);
    if (strstr(err.message, sentence) == NULL)
        print_error("%.60s: says \"%s\", should say \"%s\"\n", text, err.message, sentence);
    assert_non_null(strstr(err.message, sentence));
}

static void errors_name_the_line(void **state)
{
    (void)state;
    refuses("a\nb\n{{ n.x.y }}", "the template: line 3: 'int object' has no attribute 'x'");
    refuses("\n{% if n %}\n{{ nope() }}{% endif %}", "line 3: 'nope' is undefined");
    refuses("{{ raise_exception('roles must alternate') }}", "line 1: roles must alternate");
    refuses("x\n{% bad %}", "line 2: Encountered unknown tag 'bad'");
    refuses("{{ 1 | bad }}", "No filter named 'bad'");
    refuses("{{ 9223372036854775807 * 2 }}", "an integer needs more than 64 bits");
    refuses("{% include '/etc/passwd' %}", "no other templates to read");
    refuses("{{ n.append }}{{ [].append(1) }}", "has no attribute 'append'");
}

static void everything_is_bounded(void **state)
{
    char *deep = malloc(100000);
    struct err err;
    char *text;

    (void)state;
    refuses("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "more than");
    refuses("{% for a in range(9999) %}{{ 'x' not in s }}{% for b in s * 99999 %}{% endfor %}"
            "{% endfor %}", "more than");
    refuses("{% set ns = namespace(x='x') %}{% for i in range(99) %}"
            "{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "memory");
    refuses("{{ 'x' * 999999999999 }}", "");
    refuses("{{ [0] * 999999999999 }}", "");
    refuses("{{ 'x' | center(999999999999) }}", "");
    refuses("{{ 'x' | indent(999999999999) }}", "");
    refuses("{{ '%999999999d' % 1 }}", "a field");
    refuses("{{ '{:999999999}'.format(1) }}", "a field");
    refuses("{{ 7 ** 999999999999 }}", "64 bits");
    refuses("{{ range(999999999999) }}", "Range too big");
    refuses("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "levels");
    refuses("{% set ns = namespace(x=[]) %}{% for i in range(5000) %}"
            "{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}", "levels");
    refuses("{% set ns = namespace(x=[], y=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}"
            "{% set ns.y = [ns.y] %}{% endfor %}{{ ns.x == ns.y }}", "levels");
    memset(deep, '(', 50000);
    memcpy(deep, "{{ ", 3);
    deep[50000] = '\0';
    expect_none(render(deep, "{}", NULL, NULL, &err));
    for (size_t i = 0; i < 50000; i += 5)
        memcpy(deep + i, "{%if ", 5);
    expect_none(render(deep, "{}", NULL, NULL, &err));
    /* A long sum is deep too: refused, or done. */
    memcpy(deep, "{{ 1", 4);
    for (size_t i = 4; i < 50000; i += 2)
        memcpy(deep + i, "+1", 2);
    memcpy(deep + 50000, "}}", 3);
    text = render(deep, "{}", NULL, NULL, &err);
    free(text);
    free(deep);
}

static void mentions(void **state)
{
    static const char text[] = "<a>{{ '<b>' ~ \"x\" }}{# <c> #}";
    struct template *template = NULL;
    struct err err;

    (void)state;
    assert_int_equal(template_create(text, strlen(text), "t", &template, &err), STATUS_OK);
    assert_true(template_mentions(template, "<a>", 3));
    assert_true(template_mentions(template, "<b>", 3));
    assert_false(template_mentions(template, "<c>", 3));
    template_destroy(template);
    assert_int_equal(template_create("\xff", 1, "t", &template, &err), STATUS_BAD_INPUT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goldens),
        cmocka_unit_test(marks),
        cmocka_unit_test(errors_name_the_line),
        cmocka_unit_test(everything_is_bounded),
        cmocka_unit_test(mentions),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
