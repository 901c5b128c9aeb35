/* server/server_test.c - the server as its clients see it: bytes over loopback sockets, behind them
 * an engine without a model (testing_engine.h) that a test can hold still, so that what should
 * happen in the middle of an answer does. Nothing here depends on how fast anything is; what must
 * happen at some time is waited for, up to WAIT_S. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/size.h"
#include "engine/testing_engine.h"
#include "server/internal.h"

#define WAIT_S 30
#define LIMIT_BYTES 4096

struct fixture {
    struct engine *engine;
    struct fleet *fleet;
    struct server *server;
};

static struct fixture start(const struct server_options *changed)
{
    struct server_options options;
    struct fixture fixture = { 0 };
    struct err err;

    if (changed != NULL) {
        options = *changed;
    } else {
        server_options_init(&options);
        options.body_bytes_max = LIMIT_BYTES;
    }
    options.port = 0;
    options.model_path = "models/none";
    options.chat = &testing_chat;
    fixture.engine = testing_engine_create(true);
    assert_non_null(fixture.engine);
    if (fleet_create_local(fixture.engine, &fixture.fleet, &err) != STATUS_OK ||
        server_create(fixture.fleet, &testing_tokenizer, &options, NULL, &fixture.server, &err) !=
            STATUS_OK)
        fail_msg("%s", err.message);
    return fixture;
}

static void stop(struct fixture *fixture)
{
    server_destroy(fixture->server);
    fleet_destroy(fixture->fleet);
    testing_engine_destroy(fixture->engine);
}

/* ---- a client ---- */

static int dial(const struct fixture *fixture)
{
    const struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(server_port(fixture->server)),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    const struct timeval wait = { .tv_sec = WAIT_S };
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

/* False when the other end has closed. */
static bool send_all(int fd, const char *bytes, size_t size)
{
    while (size > 0) {
        const ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        bytes += sent;
        size -= (size_t)sent;
    }
    return true;
}

static bool send_text(int fd, const char *text)
{
    return send_all(fd, text, strlen(text));
}

struct reply {
    int code;
    char head[2048];
    char body[65536];
    size_t body_size;
};

/* Reads up to and including `end`, one byte at a time; false when the connection ends before. */
static bool read_until(int fd, const char *end, char *out, size_t out_size)
{
    size_t size = 0;

    while (size + 1 < out_size) {
        if (recv(fd, out + size, 1, 0) != 1)
            break;
        out[++size] = '\0';
        if (size >= strlen(end) && strcmp(out + size - strlen(end), end) == 0)
            return true;
    }
    out[size] = '\0';
    return false;
}

static void read_exactly(int fd, struct reply *reply, size_t size)
{
    assert_true(reply->body_size + size < sizeof(reply->body));
    while (size > 0) {
        const ssize_t got = recv(fd, reply->body + reply->body_size, size, 0);
        assert_true(got > 0);
        reply->body_size += (size_t)got;
        size -= (size_t)got;
    }
    reply->body[reply->body_size] = '\0';
}

/* Reads one response; false when the connection ended without one. */
static bool receive(int fd, struct reply *reply)
{
    const char *length;
    char line[64];

    *reply = (struct reply){ 0 };
    if (!read_until(fd, "\r\n\r\n", reply->head, sizeof(reply->head)))
        return false;
    assert_int_equal(sscanf(reply->head, "HTTP/1.1 %d", &reply->code), 1);
    length = strstr(reply->head, "Content-Length: ");
    if (length != NULL) {
        read_exactly(fd, reply, strtoul(length + 16, NULL, 10));
        return true;
    }
    assert_non_null(strstr(reply->head, "Transfer-Encoding: chunked"));
    while (read_until(fd, "\r\n", line, sizeof(line))) {
        const size_t size = strtoul(line, NULL, 16);
        read_exactly(fd, reply, size);
        assert_true(read_until(fd, "\r\n", line, sizeof(line)));
        if (size == 0)
            return true;
    }
    return false;
}

static bool send_post(int fd, const char *path, const char *body)
{
    char head[256];
    const int size = snprintf(head, sizeof(head),
                              "POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: %zu\r\n\r\n", path,
                              strlen(body));

    return send_all(fd, head, (size_t)size) && send_all(fd, body, strlen(body));
}

static struct reply *exchange(const struct fixture *fixture, const char *bytes)
{
    static struct reply reply;
    const int fd = dial(fixture);

    assert_true(send_all(fd, bytes, strlen(bytes)));
    assert_true(receive(fd, &reply));
    (void)close(fd);
    return &reply;
}

static struct reply *post(const struct fixture *fixture, const char *body)
{
    static struct reply reply;
    const int fd = dial(fixture);

    assert_true(send_post(fd, "/generate", body));
    assert_true(receive(fd, &reply));
    (void)close(fd);
    return &reply;
}

static json_t *json_of(const char *text)
{
    json_t *json = json_loads(text, JSON_DECODE_ANY, NULL);

    if (json == NULL)
        fail_msg("not JSON: %s", text);
    return json;
}

static const json_t *meta(const json_t *answer, const char *key)
{
    return json_object_get(json_object_get(answer, "meta_info"), key);
}

/* The answer is an error that has the code and says `wanted`. */
static void check_error(const struct reply *reply, int code, const char *wanted)
{
    json_t *json = json_of(reply->body);
    const json_t *error = json_object_get(json, "error");

    assert_int_equal(reply->code, code);
    assert_int_equal(json_integer_value(json_object_get(error, "code")), code);
    if (strstr(json_string_value(json_object_get(error, "message")), wanted) == NULL)
        fail_msg("\"%s\" is not in %s", wanted, reply->body);
    json_decref(json);
}

static uint64_t peek(struct engine *engine, const uint64_t *counter)
{
    uint64_t value;

    (void)pthread_mutex_lock(&engine->lock);
    value = *counter;
    (void)pthread_mutex_unlock(&engine->lock);
    return value;
}

/* Waits until a counter of the engine has a value. */
static void wait_for(struct engine *engine, const uint64_t *counter, uint64_t wanted)
{
    const uint64_t deadline_ns = clock_now_ns() + WAIT_S * UINT64_C(1000000000);

    while (peek(engine, counter) != wanted && clock_now_ns() < deadline_ns)
        clock_sleep_until_ns(clock_now_ns() + 1000000);
    assert_int_equal(peek(engine, counter), wanted);
}

/* ---- answers ---- */

static void a_prompt_is_answered(void **state)
{
    struct fixture fixture = start(NULL);
    json_t *json;

    (void)state;
    json = json_of(post(&fixture, "{\"input_ids\": [5, 6], \"rid\": \"me\","
                                  " \"sampling_params\": {\"max_new_tokens\": 3}}")->body);
    assert_string_equal(json_string_value(json_object_get(json, "text")), "<6><7><8>");
    assert_int_equal(json_array_size(json_object_get(json, "output_ids")), 3);
    assert_string_equal(json_string_value(meta(json, "id")), "me");
    assert_int_equal(json_integer_value(meta(json, "prompt_tokens")), 2);
    assert_int_equal(json_integer_value(meta(json, "completion_tokens")), 3);
    assert_null(meta(json, "garbage"));
    json_decref(json);

    json = json_of(post(&fixture, "{\"text\": \"AB\"}")->body);
    assert_string_equal(json_string_value(json_object_get(json_object_get(
                            json_object_get(json, "meta_info"), "finish_reason"), "type")),
                        "length");
    assert_int_equal(json_integer_value(meta(json, "prompt_tokens")), 3);
    json_decref(json);

    testing_engine_set(fixture.engine, &fixture.engine->garbage, true);
    json = json_of(post(&fixture, "{\"input_ids\": [5]}")->body);
    assert_true(json_is_true(meta(json, "garbage")));
    json_decref(json);
    stop(&fixture);
}

static void a_list_is_answered_in_order(void **state)
{
    struct fixture fixture = start(NULL);
    json_t *json;

    (void)state;
    json = json_of(post(&fixture, "{\"input_ids\": [[10], [20, 901], [30]], \"rid\": \"r\","
                                  " \"sampling_params\": [{\"max_new_tokens\": 40},"
                                  " {\"max_new_tokens\": 9}, {\"max_new_tokens\": 0}]}")->body);
    assert_int_equal(json_array_size(json), 3);
    assert_string_equal(json_string_value(meta(json_array_get(json, 1), "id")), "r_1");
    assert_int_equal(json_integer_value(meta(json_array_get(json, 0), "completion_tokens")), 40);
    assert_string_equal(json_string_value(json_object_get(json_array_get(json, 1), "text")),
                        "<21><22><23>");
    assert_int_equal(json_integer_value(json_object_get(
                         meta(json_array_get(json, 1), "finish_reason"), "matched")),
                     TESTING_EOS_ID);
    assert_string_equal(json_string_value(json_object_get(json_array_get(json, 2), "text")), "");
    json_decref(json);
    stop(&fixture);
}

/* Splits "data: X\n\n" events; returns how many, the last being [DONE]. */
static size_t split_events(char *body, char **events, size_t capacity)
{
    const char *last = "";
    size_t count = 0;

    while (*body != '\0') {
        char *end = strstr(body, "\n\n");
        assert_non_null(end);
        assert_memory_equal(body, "data: ", 6);
        assert_true(count < capacity);
        *end = '\0';
        last = body + 6;
        events[count++] = body + 6;
        body = end + 2;
    }
    assert_string_equal(last, "[DONE]");
    return count;
}

static void a_stream_repeats_the_text_from_the_start(void **state)
{
    struct fixture fixture = start(NULL);
    struct reply *reply = post(&fixture, "{\"input_ids\": [5], \"stream\": true,"
                                         " \"sampling_params\": {\"max_new_tokens\": 4}}");
    char *events[16];
    char last[64] = "";
    size_t count;

    (void)state;
    assert_int_equal(reply->code, 200);
    assert_non_null(strstr(reply->head, "Content-Type: text/event-stream"));
    count = split_events(reply->body, events, 16);
    assert_in_range(count, 2, 5); /* pieces that come together become one event */
    for (size_t i = 0; i + 1 < count; i++) {
        json_t *json = json_of(events[i]);
        const char *text = json_string_value(json_object_get(json, "text"));
        assert_memory_equal(text, last, strlen(last));
        assert_true(json_is_null(meta(json, "finish_reason")) == (i + 2 < count));
        assert_null(json_object_get(json, "index"));
        (void)snprintf(last, sizeof(last), "%s", text);
        json_decref(json);
    }
    assert_string_equal(last, "<6><7><8><9>");
    stop(&fixture);
}

static void a_stream_of_a_list_numbers_its_events(void **state)
{
    struct fixture fixture = start(NULL);
    struct reply *reply = post(&fixture, "{\"input_ids\": [[5], [50, 900], [70, 902]],"
                                         " \"stream\": true,"
                                         " \"sampling_params\": {\"max_new_tokens\": 4}}");
    char *events[32];
    char last[3][128] = { "", "", "" };
    const size_t count = split_events(reply->body, events, 32);

    (void)state;
    for (size_t i = 0; i + 1 < count; i++) {
        json_t *json = json_of(events[i]);
        const json_int_t index = json_integer_value(json_object_get(json, "index"));
        const json_t *reason = meta(json, "finish_reason");
        assert_in_range(index, 0, 2);
        (void)snprintf(last[index], sizeof(last[index]), "%s %s",
                       json_string_value(json_object_get(json, "text")),
                       json_is_null(reason) ? "-"
                                            : json_string_value(json_object_get(reason, "type")));
        json_decref(json);
    }
    assert_string_equal(last[0], "<6><7><8><9> length");
    assert_string_equal(last[1], "<51> abort");
    assert_string_equal(last[2], "<71><72><73> stop");
    stop(&fixture);
}

static void many_are_served_at_once(void **state)
{
    enum { CLIENTS = 64 };
    struct fixture fixture = start(NULL);
    static struct reply reply;
    int fds[CLIENTS];

    (void)state;
    testing_engine_set(fixture.engine, &fixture.engine->held, true);
    for (int i = 0; i < CLIENTS; i++) {
        char body[160];
        (void)snprintf(body, sizeof(body),
                       "{\"input_ids\": [%d], \"stream\": %s,"
                       " \"sampling_params\": {\"max_new_tokens\": 20}}",
                       100 + i, i % 2 == 0 ? "true" : "false");
        fds[i] = dial(&fixture);
        assert_true(send_post(fds[i], "/generate", body));
    }
    wait_for(fixture.engine, &fixture.engine->submit_count, CLIENTS);
    testing_engine_set(fixture.engine, &fixture.engine->held, false);
    for (int i = 0; i < CLIENTS; i++) {
        char wanted[32];
        assert_true(receive(fds[i], &reply));
        assert_int_equal(reply.code, 200);
        (void)snprintf(wanted, sizeof(wanted), "<%d><%d>\"", 119 + i, 120 + i);
        assert_non_null(strstr(reply.body, wanted));
        (void)close(fds[i]);
    }
    stop(&fixture);
}

static void a_connection_is_kept(void **state)
{
    struct fixture fixture = start(NULL);
    static struct reply reply;
    const int fd = dial(&fixture);

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_true(send_post(fd, "/generate", "{\"input_ids\": [5]}"));
        assert_true(receive(fd, &reply));
        assert_int_equal(reply.code, 200);
        assert_true(send_post(fd, "/generate", "{\"input_ids\": [5], \"stream\": true}"));
        assert_true(receive(fd, &reply));
        assert_int_equal(reply.code, 200);
        assert_true(send_post(fd, "/generate", "{\"input_ids\": 5}"));
        assert_true(receive(fd, &reply));
        check_error(&reply, 400, "input_ids");
    }
    /* Two requests in one packet are answered one after the other. */
    assert_true(send_text(fd, "GET /health HTTP/1.1\r\nHost: h\r\n\r\n"
                             "GET /none HTTP/1.1\r\nHost: h\r\n\r\n"));
    assert_true(receive(fd, &reply));
    assert_int_equal(reply.code, 200);
    assert_true(receive(fd, &reply));
    check_error(&reply, 404, "nothing at /none");
    (void)close(fd);
    stop(&fixture);
}

static void what_is_served_is_told(void **state)
{
    struct fixture fixture = start(NULL);
    struct reply *reply;
    json_t *json;

    (void)state;
    reply = exchange(&fixture, "GET /health HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_int_equal(reply->code, 200);
    reply = exchange(&fixture, "GET /health_generate HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_int_equal(reply->code, 200);
    assert_int_equal(peek(fixture.engine, &fixture.engine->submit_count), 1);
    json = json_of(exchange(&fixture, "GET /get_model_info HTTP/1.1\r\nHost: h\r\n\r\n")->body);
    assert_string_equal(json_string_value(json_object_get(json, "model_path")), "models/none");
    assert_true(json_is_true(json_object_get(json, "is_generation")));
    assert_int_equal(json_integer_value(json_object_get(json, "context_length")), TESTING_CONTEXT);
    json_decref(json);
    json = json_of(exchange(&fixture, "GET /get_server_info HTTP/1.1\r\nHost: h\r\n\r\n")->body);
    assert_int_equal(json_integer_value(json_object_get(json, "port")),
                     server_port(fixture.server));
    assert_non_null(json_object_get(json_object_get(json, "engine"), "running"));
    json_decref(json);
    json = json_of(exchange(&fixture, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")->body);
    assert_non_null(json_object_get(json_object_get(json, "endpoints"), "/generate"));
    json_decref(json);
    stop(&fixture);
}

/* ---- what is refused ---- */

static void health_follows_the_engine(void **state)
{
    struct fixture fixture = start(NULL);

    (void)state;
    testing_engine_set(fixture.engine, &fixture.engine->stopped, true);
    check_error(exchange(&fixture, "GET /health HTTP/1.1\r\nHost: h\r\n\r\n"), 503, "on fire");
    testing_engine_set(fixture.engine, &fixture.engine->stopped, false);
    assert_int_equal(exchange(&fixture, "GET /health HTTP/1.1\r\nHost: h\r\n\r\n")->code, 200);
    stop(&fixture);
}

static void bad_requests_are_told_why(void **state)
{
    static const struct {
        const char *bytes;
        int code;
        const char *wanted;
    } cases[] = {
        { "GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n", 404, "/nothing" },
        { "GET /generate HTTP/1.1\r\nHost: h\r\n\r\n", 405, "POST" },
        { "DELETE /health HTTP/1.1\r\nHost: h\r\n\r\n", 405, "GET" },
        { "POST /health HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}", 405, "GET" },
        { "POST /generate HTTP/1.1\r\nHost: h\r\n\r\n", 400, "no body" },
        { "POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", 400, "no body" },
        { "POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n{]}", 400, "not valid" },
        { "POST /generate HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
          "2\r\n{}\r\n0\r\n\r\n", 400, "neither" },
        { "POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\n\r\n"
          "{\"input_ids\":[1000]}", 400, "id 1000" },
        { "POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\n\r\n"
          "{\"input_ids\":[[1,900],[2]]} ", 500, "prompt 0: the device is on fire" },
        { "POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: 9000\r\n\r\n", 413, "4096" },
        { "POST /generate HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
          "Content-Length: 5000\r\n\r\n", 413, "4096" },
        { "POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n",
          413, "" },
    };
    struct fixture fixture = start(NULL);

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct reply *reply;
        reply = exchange(&fixture, cases[i].bytes);
        if (reply->code != cases[i].code)
            fail_msg("%s -> %s%s", cases[i].bytes, reply->head, reply->body);
        if (cases[i].wanted[0] != '\0')
            check_error(reply, cases[i].code, cases[i].wanted);
        if (reply->code == 405)
            assert_non_null(strstr(reply->head, "Allow: "));
    }
    /* Nothing of all that has stopped the server, and nothing is left in the engine. */
    assert_int_equal(post(&fixture, "{\"input_ids\": [5]}")->code, 200);
    wait_for(fixture.engine, &fixture.engine->running_count, 0);
    stop(&fixture);
}

static void broken_http_does_not_hurt(void **state)
{
    static const char *const cases[] = {
        "\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\x16\x03\x01\x02",
        "POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        "POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: 5x\r\n\r\nabcde",
        "POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
        "POST /generate HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ("POST /generate HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
         "ffffffffffffffffff\r\nx"),
        "POST /generate HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        "GET /health HTTP/1.1\r\n\r\n",
        "GET /%00%ff/../.. HTTP/1.1\r\nHost: h\r\n\r\n",
    };
    struct fixture fixture = start(NULL);

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char byte;
        const int fd = dial(&fixture);
        assert_true(send_all(fd, cases[i], strlen(cases[i])));
        (void)shutdown(fd, SHUT_WR);
        while (recv(fd, &byte, 1, 0) == 1)
            ;
        (void)close(fd);
        assert_int_equal(post(&fixture, "{\"input_ids\": [5]}")->code, 200);
    }
    stop(&fixture);
}

static void headers_have_a_limit(void **state)
{
    struct fixture fixture = start(NULL);
    static struct reply reply;
    const char line[] = "X-Flood: 0123456789012345678901234567890123456789\r\n";
    const int fd = dial(&fixture);
    size_t sent = 0;

    (void)state;
    assert_true(send_text(fd, "GET /health HTTP/1.1\r\nHost: h\r\n"));
    while (sent < 100 * SERVER_HEADER_BYTES_MAX && send_all(fd, line, sizeof(line) - 1))
        sent += sizeof(line) - 1;
    /* Cut off long before all of it, with an answer unless the reset overtook that. */
    assert_true(sent < 100 * SERVER_HEADER_BYTES_MAX);
    if (receive(fd, &reply))
        assert_in_range(reply.code, 400, 499);
    (void)close(fd);
    assert_int_equal(post(&fixture, "{\"input_ids\": [5]}")->code, 200);
    stop(&fixture);
}

static void too_large_bodies_are_not_kept(void **state)
{
    struct fixture fixture = start(NULL);
    static struct reply reply;
    char chunk[1024 + 8];
    char body[LIMIT_BYTES + 2];
    size_t sent = 0;
    int fd;

    (void)state;
    /* A little too large: read to the end, so that the client sees the answer. */
    memset(body, ' ', sizeof(body));
    body[sizeof(body) - 1] = '\0';
    check_error(post(&fixture, body), 413, "4096");
    /* Just right. */
    memcpy(body, "{\"input_ids\":[5]}", 17);
    body[LIMIT_BYTES] = '\0';
    assert_int_equal(post(&fixture, body)->code, 200);
    /* In chunks: a little too large. */
    (void)snprintf(chunk, sizeof(chunk), "400\r\n%01024d\r\n", 0);
    fd = dial(&fixture);
    assert_true(send_text(fd, "POST /generate HTTP/1.1\r\nHost: h\r\n"
                             "Transfer-Encoding: chunked\r\n\r\n"));
    for (int i = 0; i < 6; i++)
        assert_true(send_all(fd, chunk, strlen(chunk)));
    assert_true(send_text(fd, "0\r\n\r\n"));
    assert_true(receive(fd, &reply));
    check_error(&reply, 413, "4096");
    (void)close(fd);
    /* Without an end: cut off. */
    fd = dial(&fixture);
    assert_true(send_text(fd, "POST /generate HTTP/1.1\r\nHost: h\r\n"
                             "Transfer-Encoding: chunked\r\n\r\n"));
    while (sent < 64 * MIB && send_all(fd, chunk, strlen(chunk)))
        sent += strlen(chunk);
    assert_true(sent < 64 * MIB);
    (void)close(fd);
    assert_int_equal(post(&fixture, "{\"input_ids\": [5]}")->code, 200);
    stop(&fixture);
}

static void a_full_engine_says_busy(void **state)
{
    struct fixture fixture = start(NULL);
    struct reply *reply;

    (void)state;
    (void)pthread_mutex_lock(&fixture.engine->lock);
    fixture.engine->room = 2;
    (void)pthread_mutex_unlock(&fixture.engine->lock);
    testing_engine_set(fixture.engine, &fixture.engine->held, true);
    reply = post(&fixture, "{\"input_ids\": [[5], [6], [7]]}");
    check_error(reply, 503, "prompt 2: the queue is full");
    assert_non_null(strstr(reply->head, "Retry-After: "));
    /* The two that had found room were canceled. */
    wait_for(fixture.engine, &fixture.engine->cancel_count, 2);
    wait_for(fixture.engine, &fixture.engine->running_count, 0);
    testing_engine_set(fixture.engine, &fixture.engine->held, false);
    assert_int_equal(post(&fixture, "{\"input_ids\": [[5], [6]]}")->code, 200);
    stop(&fixture);
}

static void a_crowd_is_told_to_wait(void **state)
{
    struct server_options options;
    struct fixture fixture;
    int fds[3];

    (void)state;
    server_options_init(&options);
    options.connection_count_max = 3;
    fixture = start(&options);
    for (int i = 0; i < 3; i++)
        fds[i] = dial(&fixture);
    for (int i = 0; i < 3; i++) { /* each is known to be there */
        static struct reply reply;
        assert_true(send_text(fds[i], "GET /health HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_true(receive(fds[i], &reply));
        assert_int_equal(reply.code, 200);
    }
    check_error(exchange(&fixture, "GET /health HTTP/1.1\r\nHost: h\r\n\r\n"), 503,
                "3 connections");
    for (int i = 0; i < 3; i++)
        (void)close(fds[i]);
    stop(&fixture);
}

static void a_client_that_dawdles_is_cut_off(void **state)
{
    struct server_options options;
    struct fixture fixture;
    char byte;
    int fd;
    uint64_t deadline_ns;

    (void)state;
    server_options_init(&options);
    options.idle_s_max = 1;
    options.request_s_max = 1;
    fixture = start(&options);
    fd = dial(&fixture);
    assert_true(send_text(fd, "POST /generate HTTP/1.1\r\nHost: h\r\n"
                              "Content-Length: 4000\r\n\r\n"));
    /* A byte now and then does not help. */
    deadline_ns = clock_now_ns() + WAIT_S * UINT64_C(1000000000);
    while (clock_now_ns() < deadline_ns && send_text(fd, " "))
        clock_sleep_until_ns(clock_now_ns() + 20000000);
    assert_true(clock_now_ns() < deadline_ns);
    assert_true(recv(fd, &byte, 1, 0) <= 0);
    (void)close(fd);
    stop(&fixture);
}

/* ---- large bodies, which are prepared by a thread of their own ---- */

static void hold_tokenizer(bool held)
{
    (void)pthread_mutex_lock(&testing_tokenizer.lock);
    testing_tokenizer.held = held;
    (void)pthread_cond_broadcast(&testing_tokenizer.changed);
    (void)pthread_mutex_unlock(&testing_tokenizer.lock);
}

static struct fixture start_for_large_bodies(void)
{
    struct server_options options;

    server_options_init(&options);
    options.body_bytes_max = 4 * SERVER_INLINE_BYTES;
    return start(&options);
}

/* `json` and blanks, more than are prepared at once. */
static const char *large(const char *json)
{
    static char body[2 * SERVER_INLINE_BYTES];

    (void)snprintf(body, sizeof(body), "%-*s", (int)sizeof(body) - 1, json);
    return body;
}

static void large_bodies_are_answered_alike(void **state)
{
    struct fixture fixture = start_for_large_bodies();
    const struct reply *reply;

    (void)state;
    for (int i = 0; i < 20; i++) {
        reply = post(&fixture, large("{\"input_ids\": [[5], [6]]}"));
        assert_int_equal(reply->code, 200);
        assert_non_null(strstr(reply->body, "<7>"));
        reply = post(&fixture, large("{\"text\": \"a\", \"stream\": true}"));
        assert_non_null(strstr(reply->body, "data: [DONE]"));
        check_error(post(&fixture, large("{\"input_ids\": []}")), 400, "empty list");
        check_error(post(&fixture, large("{\"input_ids\": [1000]}")), 400, "id 1000");
    }
    stop(&fixture);
}

static void a_text_that_cannot_fit_is_not_tokenized(void **state)
{
    struct fixture fixture = start_for_large_bodies();
    static char body[TESTING_CONTEXT * SERVER_TEXT_BYTES_PER_TOKEN_MAX + 1024];

    (void)state;
    hold_tokenizer(true); /* so that it would hang */
    (void)snprintf(body, sizeof(body), "{\"text\": \"%0*d\"}", (int)sizeof(body) - 13, 0);
    check_error(post(&fixture, body), 400, "too many for the model's context of 64 tokens");
    hold_tokenizer(false);
    stop(&fixture);
}

/* While one prompt takes long to tokenize, others are served, and its client may leave. */
static void a_long_prompt_stops_nobody(void **state)
{
    struct fixture fixture = start_for_large_bodies();
    static struct reply reply;
    int staying, leaving;

    (void)state;
    hold_tokenizer(true);
    staying = dial(&fixture);
    assert_true(send_post(staying, "/generate", large("{\"text\": [\"a\", \"b\"]}")));
    leaving = dial(&fixture);
    assert_true(send_post(leaving, "/generate", large("{\"text\": \"c\"}")));
    for (int i = 0; i < 20; i++)
        assert_int_equal(post(&fixture, "{\"input_ids\": [5]}")->code, 200);
    assert_int_equal(peek(fixture.engine, &fixture.engine->submit_count), 20);
    (void)close(leaving);
    hold_tokenizer(false);
    assert_true(receive(staying, &reply));
    assert_int_equal(reply.code, 200);
    (void)close(staying);
    wait_for(fixture.engine, &fixture.engine->running_count, 0);
    stop(&fixture);
}

static void stopping_ends_what_is_prepared(void **state)
{
    struct fixture fixture = start_for_large_bodies();
    static struct reply reply;
    int fds[3];

    (void)state;
    testing_engine_set(fixture.engine, &fixture.engine->held, true);
    hold_tokenizer(true);
    for (int i = 0; i < 3; i++) {
        fds[i] = dial(&fixture);
        assert_true(send_post(fds[i], "/generate", large("{\"text\": \"a\"}")));
    }
    hold_tokenizer(false);
    server_destroy(fixture.server);
    for (int i = 0; i < 3; i++) {
        if (receive(fds[i], &reply))
            check_error(&reply, 503, "shutting down");
        (void)close(fds[i]);
    }
    fleet_destroy(fixture.fleet);
    testing_engine_destroy(fixture.engine);
}

/* ---- leaving and stopping ---- */

static void leaving_cancels(void **state)
{
    struct fixture fixture = start(NULL);
    static struct reply reply;
    int whole, stream;

    (void)state;
    testing_engine_set(fixture.engine, &fixture.engine->held, true);
    whole = dial(&fixture);
    assert_true(send_post(whole, "/generate", "{\"input_ids\": [[5], [6]]}"));
    stream = dial(&fixture);
    assert_true(send_post(stream, "/generate", "{\"input_ids\": [7], \"stream\": true}"));
    /* The stream's headers come before its first token. */
    assert_true(read_until(stream, "\r\n\r\n", reply.head, sizeof(reply.head)));
    wait_for(fixture.engine, &fixture.engine->submit_count, 3);
    (void)close(whole);
    wait_for(fixture.engine, &fixture.engine->cancel_count, 2);
    (void)close(stream);
    wait_for(fixture.engine, &fixture.engine->cancel_count, 3);
    stop(&fixture);
}

static void *drain(void *user)
{
    server_drain(user);
    return NULL;
}

static void draining_finishes_what_runs(void **state)
{
    struct fixture fixture = start(NULL);
    static struct reply reply;
    pthread_t drainer;
    int whole, stream, idle;
    bool draining = false;

    (void)state;
    testing_engine_set(fixture.engine, &fixture.engine->held, true);
    idle = dial(&fixture);
    assert_true(send_text(idle, "GET /health HTTP/1.1\r\nHost: h\r\n\r\n"));
    assert_true(receive(idle, &reply));
    whole = dial(&fixture);
    assert_true(send_post(whole, "/generate", "{\"input_ids\": [5]}"));
    stream = dial(&fixture);
    assert_true(send_post(stream, "/generate", "{\"input_ids\": [7], \"stream\": true}"));
    wait_for(fixture.engine, &fixture.engine->submit_count, 2);
    assert_int_equal(pthread_create(&drainer, NULL, drain, fixture.server), 0);
    while (!draining) {
        (void)pthread_mutex_lock(&fixture.engine->lock);
        draining = fixture.engine->draining;
        (void)pthread_mutex_unlock(&fixture.engine->lock);
    }
    assert_true(send_text(idle, "GET /health HTTP/1.1\r\nHost: h\r\n\r\n"));
    assert_true(receive(idle, &reply));
    check_error(&reply, 503, "shutting down");
    assert_non_null(strstr(reply.head, "Connection: close"));
    testing_engine_set(fixture.engine, &fixture.engine->held, false);
    assert_true(receive(whole, &reply));
    assert_int_equal(reply.code, 200);
    assert_true(receive(stream, &reply));
    assert_non_null(strstr(reply.body, "data: [DONE]"));
    (void)pthread_join(drainer, NULL);
    (void)close(idle);
    (void)close(whole);
    (void)close(stream);
    assert_int_equal(peek(fixture.engine, &fixture.engine->cancel_count), 0);
    stop(&fixture);
}

static void stopping_ends_what_waits(void **state)
{
    struct fixture fixture = start(NULL);
    static struct reply reply;
    int whole, stream;

    (void)state;
    testing_engine_set(fixture.engine, &fixture.engine->held, true);
    whole = dial(&fixture);
    assert_true(send_post(whole, "/generate", "{\"input_ids\": [5]}"));
    stream = dial(&fixture);
    assert_true(send_post(stream, "/generate", "{\"input_ids\": [7], \"stream\": true}"));
    wait_for(fixture.engine, &fixture.engine->submit_count, 2);
    server_destroy(fixture.server);
    assert_int_equal(peek(fixture.engine, &fixture.engine->cancel_count), 2);
    assert_false(receive(whole, &reply));
    assert_false(receive(stream, &reply));
    (void)close(whole);
    (void)close(stream);
    fleet_destroy(fixture.fleet);
    testing_engine_destroy(fixture.engine); /* its last callbacks come after the server's end */
}

static void addresses_that_cannot_be_had(void **state)
{
    struct fixture fixture = start(NULL);
    struct server_options options;
    struct server *server;
    struct err err;

    (void)state;
    server_options_init(&options);
    options.port = server_port(fixture.server);
    assert_int_equal(server_create(fixture.fleet, NULL, &options, NULL, &server, &err),
                     STATUS_UNAVAILABLE);
    assert_non_null(strstr(err.message, "127.0.0.1"));
    options.host = "256.256.256.256";
    assert_int_equal(server_create(fixture.fleet, NULL, &options, NULL, &server, &err),
                     STATUS_UNAVAILABLE);
    options.host = "";
    assert_int_equal(server_create(fixture.fleet, NULL, &options, NULL, &server, &err),
                     STATUS_BAD_INPUT);
    stop(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompt_is_answered),
        cmocka_unit_test(a_list_is_answered_in_order),
        cmocka_unit_test(a_stream_repeats_the_text_from_the_start),
        cmocka_unit_test(a_stream_of_a_list_numbers_its_events),
        cmocka_unit_test(many_are_served_at_once),
        cmocka_unit_test(a_connection_is_kept),
        cmocka_unit_test(what_is_served_is_told),
        cmocka_unit_test(health_follows_the_engine),
        cmocka_unit_test(bad_requests_are_told_why),
        cmocka_unit_test(broken_http_does_not_hurt),
        cmocka_unit_test(headers_have_a_limit),
        cmocka_unit_test(too_large_bodies_are_not_kept),
        cmocka_unit_test(a_full_engine_says_busy),
        cmocka_unit_test(a_crowd_is_told_to_wait),
        cmocka_unit_test(a_client_that_dawdles_is_cut_off),
        cmocka_unit_test(large_bodies_are_answered_alike),
        cmocka_unit_test(a_text_that_cannot_fit_is_not_tokenized),
        cmocka_unit_test(a_long_prompt_stops_nobody),
        cmocka_unit_test(stopping_ends_what_is_prepared),
        cmocka_unit_test(leaving_cancels),
        cmocka_unit_test(draining_finishes_what_runs),
        cmocka_unit_test(stopping_ends_what_waits),
        cmocka_unit_test(addresses_that_cannot_be_had),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
