/* A QEMU plugin that counts the instructions a program executes: qemu-aarch64 -plugin libcount.so,out=FILE PROGRAM
 *
 * FILE gets one decimal number when the program ends. Declares what it uses of QEMU's plugin interface itself, so that
 * no QEMU header is needed: https://www.qemu.org/docs/master/devel/tcg-plugins.html
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifndef API
#define API 1 /* of QEMU 4.2 to 8.2; from 9.0 on, 2 */
#endif
#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
enum { NO_REGISTERS = 0 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*seen)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(
    struct qemu_plugin_tb *block, void (*run)(unsigned cpu, void *data), int registers, void *data);
extern void qemu_plugin_register_atexit_cb(plugin_id id, void (*ended)(plugin_id, void *), void *data);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);

EXPORT int qemu_plugin_version = API;

static uint64_t executed;
static char path[4096];

/* A block is executed as a whole, so its length is what it adds each time. */
static void run(unsigned cpu, void *length) { (void)cpu; __atomic_fetch_add(&executed, (uintptr_t)length, __ATOMIC_RELAXED); }

static void seen(plugin_id id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, run, NO_REGISTERS, (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void ended(plugin_id id, void *data)
{
    (void)id, (void)data;
    FILE *out = fopen(path, "w");
    if (out) {
        fprintf(out, "%llu\n", (unsigned long long)executed);
        fclose(out);
    }
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int count, char **arguments)
{
    (void)info;
    if (count != 1 || strncmp(arguments[0], "out=", 4) || strlen(arguments[0]) >= sizeof path)
        return -1;
    strcpy(path, arguments[0] + 4);
    qemu_plugin_register_vcpu_tb_trans_cb(id, seen);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
